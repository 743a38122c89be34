// The page follows a growing answer only while the reader is at its end.

const NEAR = 60; // pixels that still count as the end

export class Follower {
  #following = true;
  #last = 0;

  /** `button` brings the reader back to the end. */
  constructor(button) {
    this.button = button;
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    addEventListener("resize", () => this.grown(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
  }

  /** The page has become longer. */
  grown() {
    if (this.#following) this.#jump();
    this.#show();
  }

  toEnd() {
    this.#following = true;
    this.#jump();
    this.#show();
  }

  /** From the start of a chat, without following. */
  toStart() {
    this.#following = true;
    this.#last = 0;
    scrollTo({ top: 0, behavior: "instant" });
    this.#show();
  }

  #scrolled() {
    // Only a move upwards is the reader's: a page that grows also leaves its end behind.
    if (this.#distance() <= NEAR) this.#following = true;
    else if (scrollY < this.#last) this.#following = false;
    this.#last = scrollY;
    this.#show();
  }

  #jump() {
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.#last = scrollY;
  }

  #distance() {
    return document.documentElement.scrollHeight - innerHeight - scrollY;
  }

  #show() {
    this.button.hidden = this.#distance() <= NEAR;
  }
}
