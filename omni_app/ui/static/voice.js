// The bar under the conversation: talk, camera, stop, and one line that says what is going on.
const REVIVED_WITHIN_MS = 3000;
const LEAST_SECONDS = 0.3;  // no word is shorter
const STUCK = 'The connection is stuck: please reload the page';
const MUTED = 'Press a key or click to hear the rest';
const HELD = '#box .loader, #box .minimal-audio-recorder, #chat .edit-textarea';
const part = (name) => element.querySelector(`[data-part=${name}]`);
const talk = part('talk'), camera = part('camera'), stopButton = part('stop'), line = part('status');
const handsFreeButton = part('hands-free');
const say = (text) => { if (line.textContent !== text) line.textContent = text; };
// `asked`: the page has sent something and the server has not begun to answer. `unwanted`: stopped before it began.
// `keyed`: Enter or a click is on its way through Gradio, which tells us of it ("asked") some time later.
let busy = false, asked = false, unwanted = false, keyed = false, running = 0, note = '', run = '', recorder = null;
// A recording, as bytes, that is on its way, or that was kept and then why.
let unsent = null, posting = null, keptBecause = '';
// The last recording that the server has got, until another is: it may not be able to put it to the conversation.
let handed = null;
// `revival` waits for the first update after a doubt about Gradio's stream; `stuck`: none came.
let revival = null, revivals = 0, stuck = false, leaving = false;
// `owed`: nothing has come yet of what was asked, not even the name of its speech.
let owed = false;
// What the page before this one left when it had to go: the speech it knew, and how many seconds of it were heard.
let before = JSON.parse(sessionStorage.getItem('speech'));
sessionStorage.removeItem('speech');
const reloaded = Boolean(before);
if (before) ({run, owed} = before);

const player = new SpeechPlayer({on: (event) => { if (event === 'broken') mend(); refresh(); }});
element.speechPlayer = player;

const handsFree = new HandsFree({listen: () => { if (!recorder && !unsent && !link.down && !stuck) startTalking(); }});

const answering = () => busy || asked || player.speaking || player.pending;
// An answer is stopped before a recording is discarded that was kept.
const discards = () => recorder || unsent && !answering();
function refresh() {
  handsFree.follow(answering());
  stopButton.hidden = !(recorder || unsent || answering());
  stopButton.querySelector('span').textContent = discards() ? 'Discard' : 'Stop';
  stopButton.title = discards() ? 'Discard the recording (Esc)' : 'Stop the answer (Esc)';
  if (recorder?.seconds) return;
  const doing = player.speaking ? 'speaking' : reloaded && player.pending && player.muted ? MUTED : busy || asked ? 'thinking' : '';
  const told = note || !doing && unsent && keptBecause;
  say(link.down ? 'The server cannot be reached' : stuck ? STUCK : [doing, told].filter(Boolean).join('; '));
}
function tell(text) { note = text; refresh(); }
function idle() { busy = asked = unwanted = false; refresh(); }
function stop() { handsFree.over(); silence(); }
function silence() {
  const early = asked;
  owed = false;
  player.stop();
  idle();
  unwanted = early;
  trigger('halt');
  tell('');
}
// Who has unticked "Speak answers" while the server was away wants to hear no more of this one either.
const spoken = () => document.querySelector('#speech input')?.checked !== false;
const link = new ServerWatch({
  pending: answering,
  // What has come of the speech is heard to its end, and the rest when the server is there again.
  lost: () => { revived(); handsFree.over(); idle(); },
  back: () => { spoken() ? player.again() : player.stop(); idle(); revive(reload); },
  // What is heard proves nothing: it may have come long before. It is not silenced by asking anew.
  doubted: () => { player.again(); revive(stick); },
});
// A connection that broke, from a server that is still there.
function mend() {
  link.look();
  setTimeout(() => { if (!link.down) player.again(); }, LOOK_AGAIN_MS);
}
// Ask for the conversation anew. Behind a network that went away without a word Gradio's own stream may be dead, and only
// a new page opens another; a server that answers slowly is given more time.
async function revive(otherwise) {
  const mine = revival = {};
  trigger('back', {id: ++revivals});
  do await new Promise((resolve) => setTimeout(resolve, REVIVED_WITHIN_MS)); while (revival === mine && !await link.quick());
  if (revival === mine) otherwise();
}
function revived() { revival = null; stuck = false; }
function stick() { revived(); stuck = true; refresh(); }
// A new page keeps what is written and attached, but it cuts a recording off, and has no camera, upload or message that
// is being changed.
function reload() {
  const held = recorder || unsent || talk.getAttribute('aria-disabled') === 'true' || film.srcObject
    || document.querySelector(HELD);
  if (held) { stick(); return; }
  trigger('leave');
}

watch('value', () => {
  revived();
  const value = props.value || {};
  if (value.untaken) takeBack(value);
  busy = Boolean(value.busy);
  const name = value.run || owed && value.latest;
  const fresh = name && name !== run;
  if (fresh) run = name;
  if (fresh || value.run !== undefined) owed = false;
  if (busy && unwanted) { stop(); return; }
  if (busy) asked = false;
  if (fresh) hear();
  else if (before && before.from !== null && value.latest === run) hear(before.from);
  else if (!value.run && value.run !== undefined) {
    player.stop();
    if (!busy || value.latest !== undefined) handsFree.over();  // stopped, or another conversation is shown
  }
  else if (!busy && value.speech === false) player.pending = false;
  before = null;
  refresh();
});
function hear(from) {
  player.play('gradio_api/voice/' + run, from).catch((error) => { player.pending = false; tell('no sound: ' + error.message); });
}
for (const press of ['click', 'keydown']) document.addEventListener(press, () => { if (player.muted) player.ready(); }, {capture: true});
addEventListener('pagehide', () => {
  const from = spoken() ? player.heardSeconds : null;
  if (stuck || leaving) sessionStorage.setItem('speech', JSON.stringify({run, owed: owed && spoken(), from}));
});

// What the page tells this bar: a question leaves, its handler has ended, a handler has failed, an export is wanted.
const bar = element.querySelector('.voice-bar');
bar.addEventListener('asked', () => {
  running++;
  if (!keyed) { closeEars(); asked = owed = true; unwanted = false; }
  keyed = false;
  tell('');
});
bar.addEventListener('ended', () => {
  running = Math.max(0, running - 1);
  if (!running) asked = unwanted = false;
  refresh();
});
bar.addEventListener('failed', () => link.look());
bar.addEventListener('export', ({detail}) => exported(detail).catch((error) => tell('the export failed: ' + error.message)));

async function exported(key) {
  const response = await fetch(new URL('gradio_api/export/' + key, document.baseURI), {credentials: 'same-origin'});
  if (!response.ok) { tell(await response.text()); return; }
  const saved = document.createElement('a');
  saved.href = URL.createObjectURL(await response.blob());
  saved.download = /filename="([^"]+)"/.exec(response.headers.get('Content-Disposition') || '')?.[1] || 'conversation.zip';
  saved.click();
  setTimeout(() => URL.revokeObjectURL(saved.href), 60000);
}
document.addEventListener('click', (event) => {
  if (!event.target.closest('#chat button[aria-label=Clear]')) return;
  if (!confirm('Clear this conversation? Its messages and files are deleted.')) event.stopPropagation();
}, {capture: true});

// Who asks in another way does not speak now, and the answer would be heard as the next question.
function closeEars() { if (recorder && handsFree.on) discardTalk(''); }
function sending() {
  closeEars();
  handsFree.over();
  keyed = asked = owed = true;
  unwanted = false;
  setTimeout(() => { if (keyed) { keyed = asked = false; refresh(); } }, 2000);  // Gradio did not take it
  tell('');
}
const box = () => document.querySelector('#box textarea');
// Gradio empties the box when the server has taken a question, which may be long after the next one was begun.
const plain = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value');
let sent = '';
function keepWhatIsTyped(field) {
  if (Object.hasOwn(field, 'value')) return;
  Object.defineProperty(field, 'value', {configurable: true, get: plain.get, set(text) {
    const typed = plain.get.call(field);
    if (text || !typed || typed === sent) { plain.set.call(field, text); return; }
    queueMicrotask(() => field.dispatchEvent(new Event('input', {bubbles: true})));  // Gradio believes that it is empty
  }});
}
document.addEventListener('input', ({target}) => { if (target === box()) keepWhatIsTyped(target); }, {capture: true});
document.addEventListener('keydown', (event) => {
  const sends = event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.target === box();
  if (sends && box().value.trim()) { sent = box().value; sending(); }
}, {capture: true});
document.addEventListener('click', (event) => {
  const submits = event.target.closest('#box .submit-button') && box().value.trim();
  if (submits) sent = box().value;
  if (submits || event.target.closest('#chat .example')) sending();
}, {capture: true});

// A browser that has no sound to give says so when there is something to hear.
const wake = () => player.ready().catch(() => {});
document.addEventListener('pointerdown', wake, {capture: true});
document.addEventListener('keydown', (event) => {
  wake();
  if (event.key !== 'Escape') return;
  closeCamera();
  stopOrDiscard();
}, {capture: true});
const stopOrDiscard = () => { if (discards()) discardTalk(); else stop(); };
stopButton.addEventListener('click', stopOrDiscard);

const secure = Boolean(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
for (const button of [talk, camera, handsFreeButton]) {
  button.disabled = !secure;
  if (!secure) button.title = 'Microphone and camera need HTTPS, or the address http://localhost';
}
const blocked = (what, error) => tell(error.name === 'NotAllowedError' ? `the browser did not allow the ${what}`
  : error.name === 'NotFoundError' ? `no ${what} was found` : `${what}: ${error.message}`);

// A disabled button would lose the focus, and with it the keyboard's way to send what it has started.
const hold = (held) => talk.setAttribute('aria-disabled', String(held));
// As long as a sound may be (setting max_audio_seconds): what is said after that could not be sent.
const mostSeconds = () => Number(bar.dataset.mostSeconds);

function listening(level, seconds, blockSeconds) {
  talk.style.setProperty('--level', level.toFixed(2));
  // Read aloud once that it listens: every second of it would be recorded too.
  line.ariaLive = stuck || seconds < 1 ? 'polite' : 'off';
  say(stuck ? STUCK : `listening, ${Math.floor(seconds)} s`);
  handsFree.hear(level, blockSeconds);
  if (handsFree.paused || seconds >= mostSeconds()) sendTalk();
  else if (handsFree.nothing) discardTalk('nothing was said; Talk listens again');
}
async function startTalking() {
  handsFree.listening();
  recorder = new Recorder({onStart: silence, onLevel: listening});
  tell('');
  talk.setAttribute('aria-pressed', 'true');
  talk.querySelector('span').textContent = 'Send';
  try { await recorder.start(); } catch (error) { chooseHandsFree(false); endTalking(); blocked('microphone', error); }
}
function endTalking(next = 'Talk') {
  recorder = null;
  line.ariaLive = 'polite';
  talk.setAttribute('aria-pressed', 'false');
  talk.querySelector('span').textContent = next;
  refresh();
}
function discardTalk(why = 'recording discarded') {
  recorder?.stop();
  posting?.abort();
  unsent = null;
  endTalking();
  handsFree.over();
  tell(why);
}
async function postTalk() {
  const mine = unsent;
  posting = new AbortController();
  keptBecause = '';
  tell('sending');
  const response = await fetch(new URL('gradio_api/utterance', document.baseURI),
    {method: 'POST', body: new Blob([mine], {type: 'audio/wav'}), credentials: 'same-origin', signal: posting.signal}).catch(() => null);
  const answer = await response?.json().catch(() => null);  // a proxy in front answers in a page of its own
  if (unsent !== mine) return;  // discarded
  if (!response) throw new Error('the server cannot be reached');
  if (!answer || response.status >= 500) throw new Error(answer?.error || `the server answered ${response.status}`);
  unsent = null;
  endTalking();
  if (!response.ok) { tell(answer.error); return; }
  handsFree.sent();
  keepWhatIsTyped(box());
  sent = '';
  handed = {id: answer.id, sound: mine};
  trigger('turn', {id: answer.id});
}
function kept(error) {
  if (!unsent) return;
  endTalking('Send again');
  keptBecause = 'kept, as it could not be sent: ' + error.message;
  tell('');
  link.look();
}
// A microphone that opened by itself may have heard nothing yet.
const worthKeeping = () => recorder?.seconds >= LEAST_SECONDS && (!handsFree.on || handsFree.said);
// Returns whether nothing is lost when the page goes now.
function leaveSound() {
  const sound = worthKeeping() ? recorder.wav() : unsent;
  if (!sound) leftSound.drop();
  return !sound || leftSound.put(sound);
}
addEventListener('beforeunload', (event) => { if (!leaveSound()) event.preventDefault(); });
addEventListener('pagehide', leaveSound);
function findSound() {
  unsent = leftSound.take();
  if (!unsent) return;
  keptBecause = 'kept, as the page was left before it was sent';
  endTalking('Send');
}
function takeBack({untaken, why}) {
  handsFree.over();
  if (untaken !== handed?.id || recorder || unsent) { tell(why); return; }
  unsent = handed.sound;
  handed = null;
  asked = false;
  kept(new Error(why));
}
async function takeRecording() {
  if (recorder.seconds < LEAST_SECONDS) { discardTalk('too short to send: press Talk, speak, then press Send'); return; }
  const mine = recorder, sound = await mine.stop();
  if (recorder !== mine) return;  // discarded
  unsent = sound;
  endTalking();
}
async function sendTalk() {
  hold(true);
  if (recorder) await takeRecording();
  if (unsent) await postTalk().catch(kept);
  hold(false);
}
talk.addEventListener('click', async () => {
  if (talk.getAttribute('aria-disabled') === 'true') return;
  hold(true);
  await wake();
  await (recorder || unsent ? sendTalk() : startTalking());
  hold(false);
});

function showHandsFree() { handsFreeButton.setAttribute('aria-pressed', String(handsFree.on)); }
function chooseHandsFree(on) { handsFree.choose(on); showHandsFree(); }
handsFreeButton.addEventListener('click', () => {
  chooseHandsFree(!handsFree.on);
  if (!handsFree.on) { if (recorder && !handsFree.said) discardTalk('the microphone is closed'); }
  else if (answering()) handsFree.join();
  else if (!recorder && !unsent) talk.click();
});
showHandsFree();

const view = part('preview'), film = view.querySelector('video');
const closeCamera = () => { film.srcObject?.getTracks().forEach((track) => track.stop()); film.srcObject = null; view.hidden = true; };
async function attachPhoto() {
  const canvas = new OffscreenCanvas(film.videoWidth, film.videoHeight);
  canvas.getContext('2d').drawImage(film, 0, 0);
  const blob = await canvas.convertToBlob({type: 'image/jpeg', quality: 0.9});
  const files = new DataTransfer();
  files.items.add(new File([blob], 'camera.jpg', {type: 'image/jpeg'}));
  const input = document.querySelector('#box input[type=file]');
  input.files = files.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
  closeCamera();
  tell('the picture is attached; ask about it');
}
let opening = false;
async function openCamera() {
  opening = true;
  try {
    film.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment', width: {ideal: 1280}}});
    view.hidden = false;
    await film.play();
  } catch (error) { closeCamera(); blocked('camera', error); }
  opening = false;
}
camera.addEventListener('click', () => { if (!opening) view.hidden ? openCamera() : closeCamera(); });
part('shoot').addEventListener('click', attachPhoto);
part('cancel').addEventListener('click', closeCamera);
refresh();

bar.addEventListener('leave', ({detail}) => {
  sessionStorage.setItem('draft', JSON.stringify({text: box().value, files: detail.files}));
  leaving = true;
  location.reload();
});
// A server that was started anew has no file of before, and a network that fails again keeps no text from coming over.
const there = ({url}) => fetch(url, {method: 'HEAD', credentials: 'same-origin'}).then(({ok}) => ok, () => false);
async function restore({text, files}) {
  const kept = await Promise.all(files.map(there));
  if (box().value || document.querySelector('#box .thumbnail-item')) return;
  bar.draft = {text, files: files.filter((_, index) => kept[index])};
  trigger('restored');
  if (kept.includes(false)) tell('the server no longer has what was attached: please attach it again');
}
const draft = JSON.parse(sessionStorage.getItem('draft'));
sessionStorage.removeItem('draft');
// Gradio forgets what is written before it has taken the page over.
if (draft) setTimeout(() => restore(draft), 1000);

findSound();

// Another tab may have begun, renamed or deleted a conversation meanwhile.
document.addEventListener('visibilitychange', () => { if (!document.hidden) trigger('seen'); });

// The box has a microphone of its own, whose sound goes along with what is written.
document.addEventListener('pointerover', ({target}) => {
  const microphone = target.closest('#box .microphone-button');
  if (microphone) microphone.title = 'Record a sound to attach; Talk sends what you say at once';
});

// On a phone the sidebar covers the page; it opens when asked for. Gradio lays it out some time after this runs.
if (matchMedia('(max-width: 768px)').matches) {
  const closing = setInterval(() => {
    const toggle = document.querySelector('.sidebar.open .toggle-button');
    if (toggle) { clearInterval(closing); toggle.click(); }
  }, 50);
  setTimeout(() => clearInterval(closing), 5000);
}
