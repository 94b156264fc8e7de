// The API key: in this tab only, until it is closed.

const NAME = "blsp-key";

export const key = {
  get value() {
    return sessionStorage.getItem(NAME) ?? "";
  },
  set value(text) {
    if (text) sessionStorage.setItem(NAME, text);
    else sessionStorage.removeItem(NAME);
  },
};
