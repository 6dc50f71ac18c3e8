/** Conversations in the browser's own database; where it has none, they last as long as the page. */
import type { Conversation } from "./conversation";

const STORE = "conversations";
let opened: Promise<IDBDatabase | null> | null = null;

function database(): Promise<IDBDatabase | null> {
  opened ??= new Promise((resolve) => {
    try {
      const asked = indexedDB.open("shoal", 1);
      asked.onupgradeneeded = () => asked.result.createObjectStore(STORE, { keyPath: "id" });
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = asked.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opened;
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the browser's database failed"));
  });
}

/** Latest first. */
export async function all(): Promise<Conversation[]> {
  const base = await database();
  if (base === null) return [];
  const found = await done(base.transaction(STORE).objectStore(STORE).getAll() as IDBRequest<Conversation[]>);
  return found.sort((a, b) => b.updated - a.updated);
}

export async function keep(conversation: Conversation): Promise<void> {
  const base = await database();
  if (base !== null) await done(base.transaction(STORE, "readwrite").objectStore(STORE).put(conversation));
}

export async function remove(id: string): Promise<void> {
  const base = await database();
  if (base !== null) await done(base.transaction(STORE, "readwrite").objectStore(STORE).delete(id));
}
