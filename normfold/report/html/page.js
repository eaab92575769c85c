for (const part of document.querySelectorAll("section:has(.filter)")) {
  const [text, output] = [part.querySelector("input"), part.querySelector("output")];
  const choices = [...part.querySelectorAll("select")];
  const leaves = [...part.querySelectorAll("li[data-text]")];
  const update = () => {
    const words = text.value.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
    let shown = 0;
    for (const leaf of leaves) {
      const fits = choices.every((one) => !one.value || leaf.dataset[one.name] === one.value)
        && (!words.length || words.some((word) => leaf.dataset.text.includes(word)));
      leaf.hidden = !fits;
      shown += fits;
    }
    for (const branch of part.querySelectorAll(".tree li:not([data-text])"))
      branch.hidden = !branch.querySelector("li[data-text]:not([hidden])");
    output.textContent = `${shown} of ${leaves.length}`;
  };
  text.addEventListener("input", update);
  choices.forEach((one) => one.addEventListener("change", update));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
