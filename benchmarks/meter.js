// Injected before a page's own scripts: a 10 ms peak meter on everything that reaches an AudioContext's destination.
// window.__peaks collects {now, contextTime, time, values}; performance.now() and the context's clock are tied by min(now - contextTime).
window.__peaks = [];
const METER = `
class Meter extends AudioWorkletProcessor {
  constructor() { super(); this.peak = 0; this.count = 0; this.values = []; this.time = null; this.window = Math.round(sampleRate / 100); }
  process(inputs) {
    const samples = inputs[0] && inputs[0][0];
    if (this.time === null) this.time = currentTime;
    for (let index = 0; index < 128; index++) {
      const value = samples ? Math.abs(samples[index]) : 0;
      if (value > this.peak) this.peak = value;
      if (++this.count === this.window) { this.values.push(this.peak); this.peak = 0; this.count = 0; }
    }
    if (this.values.length >= 10) { this.port.postMessage({time: this.time, values: this.values}); this.values = []; this.time = null; }
    return true;
  }
}
registerProcessor('meter', Meter);`;
const meters = new WeakMap();
const connect = AudioNode.prototype.connect;
function meterOf(context) {
  if (!meters.has(context)) meters.set(context, (async () => {
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([METER], {type: 'text/javascript'})));
    const node = new AudioWorkletNode(context, 'meter');
    node.port.onmessage = ({data}) => window.__peaks.push({...data, now: performance.now(), contextTime: context.currentTime});
    connect.call(node, context.destination);
    return node;
  })());
  return meters.get(context);
}
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode && target.context.audioWorklet) meterOf(target.context).then((meter) => connect.call(this, meter));
  return connect.call(this, target, ...rest);
};
