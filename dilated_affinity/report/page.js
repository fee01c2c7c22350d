"use strict";
for (const comparison of document.querySelectorAll(".compare")) {
  const slider = comparison.querySelector("input");
  const show = () => comparison.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", show);
  show(); // A browser may restore the value of an earlier visit.
}
