// On every page. What a person wrote and has not sent is kept in this browser, for that person alone.

const person = document.querySelector('meta[name="person"]')?.content ?? "";

try {
  if (person && localStorage.getItem("truing.person") !== person) {
    localStorage.clear();
    localStorage.setItem("truing.person", person);
  }
  document.getElementById("logout")?.addEventListener("submit", () => localStorage.clear());
} catch {
  // The browser keeps nothing: then there is nothing to clear.
}

// A form that was sent is not sent again by a second click.
for (const form of document.querySelectorAll('form[method="post"]')) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// On a phone the open page's place in a bar that scrolls sideways is in sight.
for (const here of document.querySelectorAll('nav [aria-current="page"]')) {
  const bar = here.closest("nav");
  const beside = here.getBoundingClientRect().left - bar.getBoundingClientRect().left;
  bar.scrollLeft += beside - (bar.clientWidth - here.offsetWidth) / 2;
}
