// Keeps the page up to date. The server writes all HTML, and escapes it; here only what changed is put in its place, so
// that a reader's place in the page, a screen reader's too, is not lost.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const connection = byId("connection");
  const pause = byId("pause");
  const announcements = byId("announcements");
  let paused = false;
  let latest = null;
  let ahead = 0; // seconds that the server's clock is ahead of this one

  function age(seconds) { // the same words as in markup.py
    const minutes = Math.floor(Math.max(seconds, 0) / 60);
    if (minutes === 0) return `${Math.floor(Math.max(seconds, 0))} s`;
    if (minutes < 60) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    const rest = minutes % 60;
    if (hours < 48) return rest ? `${hours} h ${rest} min` : `${hours} h`;
    return `${Math.floor(hours / 24)} d`;
  }

  function refreshAges() {
    const now = Date.now() / 1000 + ahead;
    for (const time of document.querySelectorAll("time[data-at]")) {
      const text = `${age(now - Number(time.dataset.at))} ago`;
      if (time.textContent !== text) time.textContent = text;
    }
  }

  function setText(place, text) {
    if (place.textContent !== text) place.textContent = text;
  }

  function putList(old, fresh) {
    const known = new Map(Array.from(old.children, (item) => [item.id, item]));
    let at = old.firstElementChild;
    for (const item of Array.from(fresh.children)) {
      const held = known.get(item.id);
      known.delete(item.id);
      if (held && held.dataset.revision === item.dataset.revision) {
        if (held === at) at = at.nextElementSibling;
        else old.insertBefore(held, at);
      } else {
        if (held && held === at) at = at.nextElementSibling;
        if (held) held.replaceWith(item);
        old.insertBefore(item, at);
      }
    }
    for (const gone of known.values()) gone.remove();
  }

  function put(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const now = Number(fresh.getElementById("state").dataset.now);
    ahead = now - Date.now() / 1000;
    const before = stateOf(document);
    for (const name of ["waiting", "working", "ended"]) {
      const old = byId(name);
      const next = fresh.getElementById(name);
      old.hidden = next.hidden;
      setText(old.querySelector(".count"), next.querySelector(".count").textContent);
      const none = old.querySelector(".none");
      if (none) none.hidden = next.querySelector(".none").hidden;
    }
    const after = stateOf(fresh);
    for (const name of ["waiting", "working", "ended"]) {
      putList(byId(name).querySelector("ul"), fresh.getElementById(name).querySelector("ul"));
    }
    setText(byId("more"), fresh.getElementById("more").textContent);
    const delivery = fresh.getElementById("delivery");
    if (byId("delivery").dataset.revision !== delivery.dataset.revision) byId("delivery").replaceWith(delivery);
    refreshAges();
    announce(before, after);
  }

  function stateOf(page) {
    const found = new Map();
    for (const item of page.querySelectorAll("li[id]")) {
      const state = item.querySelector(".state").textContent;
      found.set(item.id, { name: item.querySelector("h3").textContent, state });
    }
    return found;
  }

  // Ends and waits only: progress would never let anybody finish a sentence.
  function announce(before, after) {
    const lines = [];
    for (const [id, { name, state }] of after) {
      const was = before.get(id);
      if (state !== "Under way" && (!was || was.state !== state)) lines.push(`${name}: ${state}.`);
    }
    if (lines.length > 3) lines.splice(3, lines.length, `And ${lines.length - 3} more.`);
    if (lines.length) announcements.textContent = lines.join(" ");
  }

  function show(text, lost) {
    setText(connection, text);
    connection.classList.toggle("lost", lost);
  }

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    if (!paused && latest !== null) put(latest);
  });

  const source = new EventSource("events");
  source.onmessage = (event) => {
    show("Live", false);
    latest = event.data;
    if (!paused) put(latest);
  };
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return show("Connection lost, trying again", true);
    // It was refused: the form, or what is wrong, comes with the page itself. Not at once, lest it turn in a circle.
    show("Connection refused, loading again in ten seconds", true);
    setTimeout(() => location.reload(), 10000);
  };
  setInterval(refreshAges, 1000);
})();
