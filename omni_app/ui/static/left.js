// A recording that is not sent when the page is left waits in this tab until the page comes again, in a browser's five
// million letters: at one byte a letter, more than two minutes of sound.
const LETTERS_AT_ONCE = 8192;

const leftSound = {
  // False when the browser has no room for it.
  put(bytes) {
    let letters = '';
    for (let at = 0; at < bytes.length; at += LETTERS_AT_ONCE) letters += String.fromCharCode(...bytes.subarray(at, at + LETTERS_AT_ONCE));
    try { sessionStorage.setItem('recording', letters); } catch { return false; }
    return true;
  },
  take() {
    const letters = sessionStorage.getItem('recording');
    this.drop();
    return letters && Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  },
  drop() { sessionStorage.removeItem('recording'); },
};
