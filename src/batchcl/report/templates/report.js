"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const found = document.getElementById("found");
  const cards = [...document.querySelectorAll("[data-labels]")].map((item) => ({
    item,
    labels: item.dataset.labels.split(" ").filter(Boolean).map((text) => text.split(":").map(Number)),
  }));
  const groups = [...document.querySelectorAll("[data-category]")];

  const apply = () => {
    const { label, low, high, reason } = form.elements;
    const from = low.value === "" ? 0 : Number(low.value);
    const to = high.value === "" ? 100 : Number(high.value);
    const isNamed = (name) => label.value === "" || name === Number(label.value);
    const all = label.value === "" && from <= 0 && to >= 100;
    let shown = 0;
    for (const { item, labels } of cards) {
      const matches =
        label.value === "none"
          ? labels.length === 0
          : labels.some(([name, confidence]) => isNamed(name) && confidence >= from && confidence <= to);
      const group = item.closest("[data-category]").dataset.category;
      item.hidden = !((all || matches) && (reason.value === "" || group === reason.value));
      shown += !item.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector("[data-labels]:not([hidden])");
    found.textContent = `${shown} of ${cards.length} pictures`;
  };

  form.hidden = false;
  found.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
})();
