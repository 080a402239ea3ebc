// What pages do by themselves: one event stream, sections fetched anew, times that stay true.
"use strict";
(() => {
  document.documentElement.classList.add("scripted");

  // --- sections are fetched anew when an event of theirs arrives -------------------------
  const pending = new WeakMap();
  function isBusy(section) {
    const active = document.activeElement;
    const typing = active && section.contains(active) && active.matches("input, textarea, select");
    return typing || section.querySelector("details.confirm[open]") !== null;
  }
  function refresh(section) {
    if (pending.has(section)) return;
    pending.set(section, setTimeout(() => {
      pending.delete(section);
      if (section.isConnected && !isBusy(section)) htmx.trigger(section, "refresh");
    }, 250));
  }
  function concerns(section, event) {
    const subject = section.dataset.subject;
    const kinds = section.dataset.events.split(" ").some((prefix) => event.kind.startsWith(prefix));
    return kinds && (!subject || subject === event.subject || JSON.stringify(event.data).includes(subject));
  }
  function sections() { return document.querySelectorAll("[data-events]"); }

  // A section that polls must not be replaced under somebody's hands either.
  document.addEventListener("htmx:before:request", (event) => {
    const section = event.target;
    if (section.matches && section.matches("[data-events]") && isBusy(section)) event.preventDefault();
  });

  // --- the stream --------------------------------------------------------------------------
  const light = document.querySelector("[data-stream]");
  const word = document.querySelector("[data-stream-word]");
  let source = null;
  let wasAway = false;
  function show(live, text) {
    if (!light) return;
    light.classList.toggle("live", live);
    word.textContent = text;
    light.title = "Event stream: " + text;
  }
  function open() {
    if (source || !light) return;
    source = new EventSource("/api/v1/events");
    source.onopen = () => {
      show(true, "live");
      if (wasAway) sections().forEach(refresh);
      wasAway = false;
    };
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      sections().forEach((section) => { if (concerns(section, event)) refresh(section); });
      document.dispatchEvent(new CustomEvent("meta-agent:event", { detail: event }));
    };
    source.onerror = () => {
      const closed = source.readyState === EventSource.CLOSED;
      show(false, closed ? "ended, reload" : "reconnecting");
    };
  }
  // A browser allows six connections to a host: a page that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && source) {
      source.close();
      source = null;
      wasAway = true;
      show(false, "resting");
    } else if (!document.hidden) open();
  });
  addEventListener("pagehide", () => { if (source) source.close(); });
  open();

  // --- times ---------------------------------------------------------------------------------
  function span(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return s + " s";
    if (s < 3600) return Math.floor(s / 60) + " min";
    if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s / 60) % 60 + " min";
    return Math.floor(s / 86400) + " d " + Math.floor(s / 3600) % 24 + " h";
  }
  function tick() {
    document.querySelectorAll("time[data-ago]").forEach((each) => {
      const passed = (Date.now() - Date.parse(each.dateTime)) / 1000;
      const text = each.dataset.ago === "span" ? span(Math.abs(passed)) : passed >= 0 ? span(passed) + " ago" : "in " + span(-passed);
      if (each.textContent !== text) each.textContent = text;
    });
  }
  setInterval(tick, 1000);

  // --- the menu on a narrow screen ---------------------------------------------------------
  const menu = document.querySelector("[data-menu]");
  if (menu) menu.addEventListener("click", () => {
    const opened = document.getElementById("nav").classList.toggle("open");
    menu.setAttribute("aria-expanded", String(opened));
  });

  // A popover closes when one clicks elsewhere or presses Escape.
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.confirm[open]").forEach((each) => {
      if (!each.contains(event.target)) each.open = false;
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelectorAll("details.confirm[open]").forEach((each) => { each.open = false; });
  });

  // --- chat ----------------------------------------------------------------------------------
  const composer = document.querySelector("[data-composer]");
  if (composer) {
    const field = composer.querySelector("[name=text]");
    const messages = document.querySelector("[data-messages]");
    composer.addEventListener("htmx:before:request", () => {
      document.querySelectorAll("[data-welcome]").forEach((each) => each.remove());
      // The request has taken its values by now.
      setTimeout(() => { field.value = ""; field.focus(); });
    });
    new MutationObserver(() => { scrollTo({ top: document.body.scrollHeight }); }).observe(messages, { childList: true, subtree: true });
    document.addEventListener("click", (event) => {
      const chip = event.target.closest("[data-say]");
      if (!chip) return;
      field.value = chip.dataset.say;
      composer.requestSubmit();
    });
    if (messages.querySelector("article")) scrollTo({ top: document.body.scrollHeight });
  }
})();
