// The sliders of chapters 4, 6 and 7: move a line along the curves and say what the position means. The curves and the
// sentences are in the page (src/normbook/curves.py); without scripts the slider stays hidden.
for (const figure of document.querySelectorAll("figure.slider")) {
  const range = figure.querySelector("input");
  const choice = figure.querySelector("select");
  const scenes = [...figure.querySelectorAll(".scene")].map((box) => {
    const [sentences, names] = JSON.parse(box.dataset.words);
    const moving = [...box.querySelectorAll("[data-x]")].map((mark) => ({
      mark,
      x: mark.dataset.x.split(" "),
      y: mark.dataset.y?.split(" "),
    }));
    return { box, sentences, names, moving };
  });

  const show = () => {
    const scene = scenes[choice ? choice.selectedIndex : 0];
    range.max = scene.sentences.length - 1;
    const at = Number(range.value);
    for (const each of scenes) each.box.hidden = each !== scene;
    for (const { mark, x, y } of scene.moving) {
      const known = !y || y[at] !== "-";
      mark.setAttribute("visibility", known ? "visible" : "hidden");
      if (known) mark.setAttribute("transform", `translate(${x[at]} ${y ? y[at] : 0})`);
    }
    range.setAttribute("aria-valuetext", scene.names[at]);
    figure.querySelector("b").textContent = scene.names[at];
    figure.querySelector("output").textContent = scene.sentences[at];
  };
  for (const control of [range, choice]) control?.addEventListener("input", show);
  figure.hidden = false;
  show();
}
