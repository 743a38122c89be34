// Runs before the page is drawn, so that a chosen theme does not flash: the reader's choice, else the system's.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("parley.theme");
  } catch {
    // storage is switched off; the system's theme it is
  }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
