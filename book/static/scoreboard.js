// The scoreboard's table: sort by a column's button, filter by words, verdict, chapter and paper. Without scripts the
// table stands as it is.
(() => {
  const table = document.querySelector(".scoreboard table");
  const box = document.getElementById("scoreboard-controls");
  if (!table || !box) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];

  const field = (name, element) => {
    const label = document.createElement("label");
    label.append(name + " ", element);
    box.append(label);
    element.addEventListener("input", filter);
    return element;
  };
  const choice = (name, key) => {
    const select = document.createElement("select");
    const values = [...new Set(rows.map((row) => row.dataset[key]))];
    values.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    for (const value of ["all", ...values]) select.append(new Option(value, value));
    return field(name, select);
  };
  const words = field("words", Object.assign(document.createElement("input"), { type: "search" }));
  const choices = { verdict: choice("verdict", "verdict"), chapter: choice("chapter", "chapter"), paper: choice("paper", "paper") };
  const count = box.appendChild(document.createElement("output"));

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = Object.entries(choices).every(([key, select]) => ["all", row.dataset[key]].includes(select.value));
      row.hidden = !(fits && wanted.every((word) => text.includes(word)));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} verdicts`; // a claim judged at two scales has two
  }

  const textOf = (row, column) => row.cells[column].textContent;
  const asWords = (column) => (a, b) => textOf(a, column).localeCompare(textOf(b, column), "en", { numeric: true });
  // the first number of a cell; a cell without one stands with the smallest
  const value = (row, column) => Number(textOf(row, column).match(/-?[\d.]+(e[-+]?\d+)?/)?.[0] ?? -Infinity);
  const asNumbers = (column) => (a, b) => (value(a, column) < value(b, column) ? -1 : +(value(a, column) > value(b, column)));

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.textContent === "interval") return;
    const order = (["estimate", "region", "paper"].includes(head.textContent) ? asNumbers : asWords)(column);
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.sort((a, b) => (down ? -order(a, b) : order(a, b))));
    });
  });
  filter();
})();
