"use strict";
(function () {
  const cards = Array.from(document.querySelectorAll(".card"));
  const list = document.querySelector(".cards");
  const controls = document.querySelector(".controls");
  if (!list || !controls) return;
  const buttons = Array.from(controls.querySelectorAll("button[data-group]"));
  const select = controls.querySelector("select");
  const count = document.getElementById("shown");

  function showGroup(group) {
    buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.group === group)));
    const rank = (card) => (group === "all" ? 0 : Number(card.getAttribute("data-" + group)));
    const wanted = cards.filter((card) => group === "all" || card.hasAttribute("data-" + group));
    cards.forEach((card) => { card.hidden = !wanted.includes(card); });
    wanted.sort((a, b) => rank(a) - rank(b)).forEach((card) => list.appendChild(card));
    count.textContent = wanted.length + (wanted.length === 1 ? " clip" : " clips");
  }
  function showSystem(index) {
    document.querySelectorAll(".system").forEach((part) => { part.hidden = part.dataset.system !== index; });
  }
  buttons.forEach((b) => b.addEventListener("click", () => showGroup(b.dataset.group)));
  if (select) {
    select.addEventListener("change", () => showSystem(select.value));
    showSystem(select.value);
  }
  list.addEventListener("play", (event) => {
    document.querySelectorAll("audio").forEach((other) => { if (other !== event.target) other.pause(); });
  }, true);
  controls.hidden = false;
  showGroup("sample");
})();
