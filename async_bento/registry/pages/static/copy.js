"use strict";
// The buttons that copy a command are hidden without JavaScript. Plain HTTP has no navigator.clipboard.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let copied = false;
    try {
      await navigator.clipboard.writeText(source.textContent);
      copied = true;
    } catch {
      getSelection().selectAllChildren(source);
      copied = document.execCommand("copy");
    }
    document.getElementById("status").textContent = copied ? "Copied to the clipboard." : "Press Ctrl+C to copy.";
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}
