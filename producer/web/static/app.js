// Live parts, and images that are dropped or pasted. Every page works without this.
"use strict";

const LIVE_MS = 2000;
const lost = document.querySelector(".lost");

async function refresh() {
  const parts = document.querySelectorAll("[data-live]");
  if (!parts.length || document.hidden) return;
  try {
    // Not location.href: after pruning, that is the address of a form, which answers no GET.
    const answer = await fetch(document.querySelector("nav [aria-current]").href, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts) {
      const fresh = page.getElementById(part.id);
      // What somebody is typing into, or has reached with the keyboard, stays as it is.
      if (fresh && !part.contains(document.activeElement)) part.replaceChildren(...fresh.childNodes);
    }
    lost.classList.remove("on");
  } catch {
    lost.classList.add("on");
  }
}

if (document.querySelector("[data-live]")) setInterval(refresh, LIVE_MS);

// A poster that cannot be decoded has no picture.
function withoutPicture(image) {
  const text = document.createElement("span");
  text.className = "none";
  text.textContent = image.alt;
  image.replaceWith(text);
}
addEventListener("error", (event) => { if (event.target.matches?.(".art img")) withoutPicture(event.target); }, true);
for (const image of document.querySelectorAll(".art img")) {
  if (image.complete && !image.naturalWidth) withoutPicture(image);
}

const form = document.querySelector("form.drop");
if (form) {
  const input = form.querySelector("input[type=file]");
  const submit = (files) => {
    const image = [...files].find((file) => file.type.startsWith("image/"));
    if (!image) return;
    const chosen = new DataTransfer();
    chosen.items.add(image);
    input.files = chosen.files;
    form.requestSubmit();
  };
  addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  addEventListener("dragleave", () => form.classList.remove("over"));
  addEventListener("drop", (event) => { event.preventDefault(); form.classList.remove("over"); submit(event.dataTransfer.files); });
  addEventListener("paste", (event) => submit(event.clipboardData.files));
  for (const other of form.querySelectorAll("input[type=file]")) {
    other.addEventListener("change", () => { if (other.files.length) form.requestSubmit(); });
  }
  form.addEventListener("submit", () => form.classList.add("busy"));
  addEventListener("pageshow", () => form.classList.remove("busy"));
}
