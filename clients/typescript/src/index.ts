// A client of Heliograph's API: send, wait, watch; everything else is `api`, typed by the API's own document.
//
//   const heliograph = new Heliograph({ url, apiKey });
//   const { id } = await heliograph.send({ to: { user_id: "ada" }, template: { id: "parcel" } });
//   const { status } = await heliograph.wait(id);

import createClient, { type Client } from "openapi-fetch";

import { joined, type LiveEvent, parsed } from "./live.js";
import type { components, paths } from "./schema.js";

export type { LiveEvent } from "./live.js";
export type Schemas = components["schemas"];
export type Result = Schemas["Results"]["results"][number];
/** What is sent, to one recipient: fields with a default may be left out. */
export type Notification = Partial<Omit<Schemas["Notification"], "to">> & { to: Partial<Schemas["To"]> };

const FIRST_WAIT_MS = 200;
const LONGEST_WAIT_MS = 5_000;
const BACK_AFTER_MS = 1_000;
const SILENCE_MS = 45_000; // the API says something every 15 s
const MAX_ITEMS = 1_000;

export interface Options {
  url: string;
  /** A key, or in a browser nothing: `watch` then takes a stream token. */
  apiKey?: string;
  /** Of one try. */
  timeoutMs?: number;
  /** Of all tries of a call: 429, 503, lost answers. */
  retryForMs?: number;
}

/** The API refused: what its problem document says. */
export class ApiError extends Error {
  readonly code: string;
  readonly errors: unknown[];
  readonly requestId: string | undefined;

  constructor(readonly status: number, problem: Partial<Schemas["Problem"]> | undefined) {
    super(`${status} ${problem?.code ?? "unknown"}: ${problem?.detail ?? "without a reason"}`);
    this.code = problem?.code ?? "unknown";
    this.errors = problem?.errors ?? [];
    this.requestId = problem?.request_id;
  }
}

/** No answer, for as long as it was asked again. */
export class UnavailableError extends Error {}

const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** When a call is made again. */
class Patience {
  private readonly ends: number;
  private wait = FIRST_WAIT_MS;

  constructor(forMs: number) {
    this.ends = Date.now() + forMs;
  }

  /** Waits; false when there is no time left. */
  async next(retryAfter?: string | null): Promise<boolean> {
    const ms = Math.max((Number(retryAfter) || 0) * 1_000, this.wait * (0.5 + Math.random() / 2));
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
    if (Date.now() + ms >= this.ends) return false;
    await pause(ms);
    return true;
  }
}

export class Heliograph {
  /** Every route of the API. Calls are made again after a 429; those but POST also after a 503 or a lost answer. */
  readonly api: Client<paths>;
  private readonly url: string;
  private readonly headers: Record<string, string>;
  private readonly timeoutMs: number;
  private readonly retryForMs: number;

  constructor({ url, apiKey, timeoutMs = 30_000, retryForMs = 60_000 }: Options) {
    this.url = url.replace(/\/+$/, "");
    this.headers = apiKey === undefined ? {} : { Authorization: `Bearer ${apiKey}` };
    this.timeoutMs = timeoutMs;
    this.retryForMs = retryForMs;
    this.api = createClient<paths>({
      baseUrl: this.url,
      headers: this.headers,
      fetch: (request) => this.ask(request, request.method !== "POST"),
    });
  }

  /** Send one. Without a key or a `request_id` one is made: however often the call is repeated, it is one notification. */
  async send(notification: Notification, key?: string): Promise<Schemas["Accepted"]> {
    const made = key ?? (notification.request_id ? undefined : crypto.randomUUID());
    const params = made === undefined ? {} : { header: { "Idempotency-Key": made } };
    const body = notification as Schemas["Notification"];
    // Of several recipients, which the type does not allow, the answer would be a list.
    return value(await this.api.POST("/v1/notifications", { ...this.again, params, body })) as Schemas["Accepted"];
  }

  /** Send any number; each is accepted or refused for itself, in their order. Those without a `request_id` get one. */
  async sendMany(notifications: readonly Notification[]): Promise<Result[]> {
    const keyed = notifications.map((one) => ({ ...one, request_id: one.request_id ?? crypto.randomUUID() }));
    const results: Result[] = [];
    for (let start = 0; start < keyed.length; start += MAX_ITEMS) {
      const body = { notifications: keyed.slice(start, start + MAX_ITEMS) } as Schemas["Bulk"];
      const answer = value(await this.api.POST("/v1/notifications/bulk", { ...this.again, body }));
      results.push(...answer.results.map((one) => ({ ...one, index: start + one.index })));
    }
    return results;
  }

  /** What became of it. */
  async get(id: string): Promise<Schemas["NotificationStatus"]> {
    return value(await this.api.GET("/v1/notifications/{notification_id}", { params: { path: { notification_id: id } } }));
  }

  /** Cancel what is not sent yet. ApiError 409 when it is settled. */
  async cancel(id: string): Promise<Schemas["Cancelled"]> {
    const params = { path: { notification_id: id } };
    return value(await this.api.POST("/v1/notifications/{notification_id}/cancel", { ...this.again, params }));
  }

  /** Send a settled one again, decided anew: whoever got it gets it twice. */
  async resend(id: string): Promise<Schemas["Resent"]> {
    const params = { path: { notification_id: id } };
    return value(await this.api.POST("/v1/notifications/{notification_id}/resend", { params }));
  }

  /** What became of it, once it is settled: watched, not asked for again and again. */
  async wait(id: string): Promise<Schemas["NotificationStatus"]> {
    for (;;) {
      let outcome: Schemas["NotificationStatus"] | null = null;
      for await (const event of this.watch([id])) {
        if (event.kind === "snapshot") outcome = event.data.notification;
        else if (event.kind === "status") outcome = null; // a new stream begins with a snapshot of now
        else if (event.data.reason === "not_found") throw new ApiError(404, { code: "not_found" });
      }
      if (outcome !== null) return outcome;
    }
  }

  /** Events as they happen, through lost connections: of notifications until all are settled, else of all of the tenant's. */
  async *watch(
    ids: readonly string[] = [],
    { after, token, ...filters }: { after?: string; token?: string; [filter: string]: string | undefined } = {},
  ): AsyncGenerator<LiveEvent> {
    const query = new URLSearchParams(ids.map((id) => ["notification_id", id]));
    if (ids.length > 0) query.set("until", "settled");
    for (const [name, given] of Object.entries(filters)) if (given !== undefined) query.set(name, given);
    if (token !== undefined) query.set("access_token", token);
    const place = joined(ids.length > 0, after);
    let patience: Patience | undefined;
    while (!place.over) {
      patience ??= new Patience(this.retryForMs);
      const silence = new AbortController();
      let timer = setTimeout(() => silence.abort(), this.timeoutMs);
      try {
        const headers = { ...this.headers, ...(place.last === undefined ? {} : { "Last-Event-ID": place.last }) };
        const response = await fetch(`${this.url}/v1/stream?${query}`, { headers, signal: silence.signal });
        if (response.status === 204) return;
        if (response.status !== 200 || response.body === null) {
          const passing = response.status === 429 || response.status === 503;
          if (passing && (await patience.next(response.headers.get("Retry-After")))) continue;
          throw new ApiError(response.status, await response.json().catch(() => undefined));
        }
        for await (const sent of parsed(response.body, () => {
          clearTimeout(timer);
          timer = setTimeout(() => silence.abort(), SILENCE_MS);
        })) {
          patience = undefined;
          const event = place.take(sent);
          if (event !== undefined) yield event;
        }
      } catch (error) {
        if (error instanceof ApiError) throw error;
        patience ??= new Patience(this.retryForMs);
        if (!(await patience.next())) throw new UnavailableError(`${this.url} does not answer`, { cause: error });
        continue;
      } finally {
        clearTimeout(timer);
        silence.abort(); // where whoever watches has stopped before the end
      }
      if (!place.over) await pause(BACK_AFTER_MS);
    }
  }

  /** For calls that are one thing however often they are made. */
  private get again() {
    return { fetch: (request: Request) => this.ask(request, true) };
  }

  private async ask(request: Request, again: boolean): Promise<Response> {
    const patience = new Patience(this.retryForMs);
    for (;;) {
      let retryAfter: string | null = null;
      try {
        const signal = AbortSignal.any([request.signal, AbortSignal.timeout(this.timeoutMs)]);
        const response = await fetch(request.clone(), { signal });
        if (response.status !== 429 && !(response.status === 503 && again)) return response;
        retryAfter = response.headers.get("Retry-After");
        if (!(await patience.next(retryAfter))) return response;
      } catch (error) {
        if (request.signal.aborted) throw error;
        if (!again || !(await patience.next())) throw new UnavailableError(`${this.url} does not answer`, { cause: error });
      }
    }
  }
}

function value<T>(answer: { data?: T; error?: unknown; response: Response }): T {
  if (answer.data === undefined) throw new ApiError(answer.response.status, answer.error as Partial<Schemas["Problem"]>);
  return answer.data;
}
