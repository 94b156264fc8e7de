// Plays recordings, one at a time.

const sound = new Audio();
let pressed = null;

/** Lets a button play the file that `file()` is by then, and stop it. */
export function plays(button, file) {
  button.addEventListener("click", () => {
    const again = pressed === button;
    quiet();
    if (again) return;
    sound.src = URL.createObjectURL(file());
    pressed = button;
    button.setAttribute("aria-pressed", "true");
    sound.play().catch(quiet);
  });
}

/** Stops what plays. */
export function quiet() {
  sound.pause();
  URL.revokeObjectURL(sound.src);
  pressed?.setAttribute("aria-pressed", "false");
  pressed = null;
}

sound.addEventListener("ended", quiet);
