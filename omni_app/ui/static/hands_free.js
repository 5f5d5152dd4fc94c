// Hands-free: a pause sends what was said, and when the answer has been heard the microphone opens again.
const PAUSE_SECONDS = 1.2, SILENT_SECONDS = 12, LEAST_SPEECH_SECONDS = 0.25, ECHO_MS = 400;
const LEAST_LOUD = 0.02, OVER_NOISE = 3;
const FLOOR_STEP_SECONDS = 0.25, FLOOR_STEPS = 12, WARM_UP_SECONDS = 0.3;

// Tells speech from the noise of a room by the quietest moment of the last three seconds: speech has some, noise has none
// that is much quieter than the rest (R. Martin, "Noise Power Spectral Density Estimation ...", 2001, in its simplest form).
class PauseDetector {
  constructor() { Object.assign(this, {level: 0, seconds: 0, spoken: 0, quiet: 0, floors: [], step: 0}); }
  // A block of sound: its peak, 0 to 1, and its length.
  hear(peak, seconds) {
    this.seconds += seconds;
    this.level = Math.max(peak, this.level - this.level * seconds / 0.03);
    if (this.seconds < WARM_UP_SECONDS) return;  // many microphones begin with silence, which is no floor
    this.learn(seconds);
    const loud = this.level > Math.max(LEAST_LOUD, OVER_NOISE * Math.min(...this.floors));
    this.spoken += loud ? seconds : 0;
    this.quiet = loud ? 0 : this.quiet + seconds;
  }
  learn(seconds) {
    this.step += seconds;
    if (!this.floors.length || this.step >= FLOOR_STEP_SECONDS) { this.floors = [this.level, ...this.floors].slice(0, FLOOR_STEPS); this.step = 0; }
    this.floors[0] = Math.min(this.floors[0], this.level);
  }
  get said() { return this.spoken >= LEAST_SPEECH_SECONDS; }
  // Somebody has spoken and makes a pause.
  get paused() { return this.said && this.quiet >= PAUSE_SECONDS; }
  get nothing() { return !this.said && this.seconds >= SILENT_SECONDS; }
}

// Whose turn it is: after an answer to something spoken `listen` is called, unless somebody did something meanwhile.
class HandsFree {
  constructor({listen}) { Object.assign(this, {listen, on: localStorage.getItem('omni-hands-free') === 'on', turn: 'nobody', pauses: null}); }
  choose(on) { this.on = on; localStorage.setItem('omni-hands-free', on ? 'on' : 'off'); }
  listening() { this.turn = 'mine'; this.pauses = new PauseDetector(); }
  hear(peak, seconds) { this.pauses.hear(peak, seconds); }
  get paused() { return this.on && this.pauses.paused; }
  get nothing() { return this.on && this.pauses.nothing; }
  get said() { return Boolean(this.pauses?.said); }
  sent() { this.turn = this.on ? 'sent' : 'nobody'; }
  join() { this.turn = 'theirs'; }  // in the middle of an answer
  over() { this.turn = 'nobody'; }
  // `answering`: an answer is awaited, made or heard.
  follow(answering) {
    if (this.turn === 'sent' && answering) this.turn = 'theirs';
    if (this.turn !== 'theirs' || answering) return;
    this.turn = 'next';
    setTimeout(() => {
      if (this.turn !== 'next') return;
      this.over();
      if (this.on && !document.hidden) this.listen();
    }, ECHO_MS);
  }
}
