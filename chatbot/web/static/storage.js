// Chats and settings in the browser's own storage, one entry a chat. Nothing of it reaches the server.

import { fromJson } from "./chats.js";

const CHAT = "parley.chat.";
const SETTINGS = "parley.settings";
const THEME = "parley.theme"; // theme.js reads it before the page is drawn

/** All chats, newest first, and how many entries could not be read. */
export function loadChats() {
  const texts = keys().map((key) => localStorage.getItem(key));
  const chats = texts.map(fromJson).filter((chat) => chat !== null);
  chats.sort((a, b) => b.updated.localeCompare(a.updated));
  return { chats, unreadable: texts.length - chats.length };
}

/** Returns false where the browser has no room, or allows no storage. */
export function saveChat(chat) {
  return write(CHAT + chat.id, JSON.stringify(chat));
}

export function removeChat(chat) {
  localStorage.removeItem(CHAT + chat.id);
}

/** Every chat, those that could not be read included. */
export function removeAllChats() {
  for (const key of keys()) localStorage.removeItem(key);
}

/** Calls `listener` when another tab of this page changes a chat. */
export function onOtherTabs(listener) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(CHAT)) listener();
  });
}

/** {documents: whether to answer from the documents, passages: how many, null for the server's own number}. */
export function loadSettings() {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") ?? {};
  } catch {
    saved = {}; // damaged, or storage is switched off
  }
  const passages = Number.isInteger(saved.passages) && saved.passages > 0 ? saved.passages : null;
  return { documents: saved.documents !== false, passages };
}

export function saveSettings(settings) {
  return write(SETTINGS, JSON.stringify(settings));
}

/** "light", "dark", or null for the system's. */
export function saveTheme(theme) {
  if (theme === null) localStorage.removeItem(THEME);
  else write(THEME, theme);
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return []; // storage is switched off
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}
