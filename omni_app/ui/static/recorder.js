// The microphone: 16 kHz mono samples while it is open, and the bytes of a WAV file of them at the end.
const CAPTURE = `
class Capture extends AudioWorkletProcessor {
  process(inputs) { const samples = inputs[0][0]; if (samples) this.port.postMessage(samples.slice()); return true; }
}
registerProcessor('capture', Capture);`;
const WANTED_SOUND = {echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1};

class Recorder {
  // `onStart` is called before the first sample is taken, when nothing can keep the recording from it any more.
  constructor({rate = 16000, onStart = () => {}, onLevel = () => {}} = {}) { Object.assign(this, {rate, onStart, onLevel, blocks: []}); }
  // Nothing stays open when it fails, nor when stop() comes while the browser still asks for permission.
  async start() {
    try { await this.open(); } catch (error) { await this.release(); throw error; }
  }
  async open() {
    Object.assign(this, {blocks: [], stopped: false});
    this.stream = await navigator.mediaDevices.getUserMedia({audio: WANTED_SOUND});
    if (this.stopped) return this.release();
    this.context = new AudioContext({sampleRate: this.rate});
    await this.context.audioWorklet.addModule(URL.createObjectURL(new Blob([CAPTURE], {type: 'text/javascript'})));
    if (this.stopped) return this.release();
    const node = new AudioWorkletNode(this.context, 'capture');
    node.port.onmessage = ({data}) => {
      if (this.stopped) return;
      this.blocks.push(data);
      this.onLevel(Math.max(...data.map(Math.abs)), this.seconds, data.length / this.rate);
    };
    const source = this.context.createMediaStreamSource(this.stream);
    this.onStart();
    source.connect(node);
  }
  get seconds() { return this.blocks.length * 128 / this.rate; }
  async stop() {
    this.stopped = true;
    await this.release();
    return this.wav();
  }
  async release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== 'closed') await this.context.close();
  }
  wav() {
    const count = this.blocks.reduce((sum, block) => sum + block.length, 0);
    const view = new DataView(new ArrayBuffer(44 + count * 2));
    const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
    text(0, 'RIFF'); view.setUint32(4, 36 + count * 2, true); text(8, 'WAVEfmt ');
    view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
    view.setUint32(24, this.rate, true); view.setUint32(28, this.rate * 2, true); view.setUint16(32, 2, true);
    view.setUint16(34, 16, true); text(36, 'data'); view.setUint32(40, count * 2, true);
    let at = 44;
    for (const block of this.blocks) for (const sample of block) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true); at += 2;
    }
    return new Uint8Array(view.buffer);
  }
}
