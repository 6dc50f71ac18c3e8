/** What the operator's API answers: the types of src/shoal/observed/. Times are seconds since 1970, durations seconds, sizes bytes. */

export interface Me {
  role: "user" | "operator";
  key: string;
  needs_key: boolean;
}

export interface Progress {
  words: string;
  done: number;
  total: number;
}

export interface MachineView {
  name: string;
  number: number;
  role: "layers" | "experts";
  state: string;
  words: string;
  address: string;
  machine: string;
  threads: number;
  silence: number;
  first_layer: number;
  end_layer: number;
  experts: number;
  weights: number;
  memory: number;
  resident: number;
  runtime: string;
  bytes_per_second: number;
  flops: number;
  disk: number;
  round_trip: number;
  link_bytes_per_second: number;
  busy: number;
  slower: number;
  queue: number;
  progress: Progress | null;
  computed: Computed | null;
}

export interface Computed {
  decoding: ComputeParts;
  prompts: ComputeParts;
}

/** Seconds. */
export interface ComputeParts {
  attention: number;
  feed_forward: number;
  experts: number;
  waiting: number;
  head: number;
  other: number;
}

export interface StageView {
  node: string;
  first_layer: number;
  end_layer: number;
  wait: number;
  compute: number;
  sample: number;
  share: number;
  predicted: number;
  hop: number;
}

export interface RequestsView {
  running: number;
  waiting: number;
  slots: number;
  blocks_used: number;
  blocks: number;
}

export interface ModelView {
  name: string;
  reference: string;
  layers: number;
  context: number;
  weights: number;
  experts: number;
}

export interface Advice {
  kind: string;
  message: string;
  node: string;
  gain: number;
}

/** A running copy of a model. nodes: names of those that have a part in it. */
export interface PipelineView {
  name: string;
  model: string;
  replica: number;
  state: string;
  reason: string;
  requests: RequestsView;
  measured: number;
  nodes: string[];
}

/** As one pipeline has it; `pipelines` are all. */
export interface ClusterView {
  cluster: string;
  version: string;
  at: number;
  started: number;
  model: ModelView;
  state: string;
  reason: string;
  epoch: number;
  machines: MachineView[];
  stages: StageView[];
  requests: RequestsView;
  predicted: number;
  predicted_single: number;
  measured: number;
  last_hop: number;
  advice: Advice[];
  attention: Advice[];
  pipeline: string;
  pipelines: PipelineView[];
}

export interface ExpertsView {
  rows: Record<string, number[]>;
}

export interface PlanView {
  stages: StageView[];
  predicted: number;
  predicted_now: number;
  moved: Record<string, number>;
  why: string;
}

export interface ActionResult {
  done: boolean;
  message: string;
}

export interface Invitation {
  address: string;
  command: string;
  code: string;
  expires: number;
}

export interface ClusterEvent {
  number: number;
  at: number;
  kind: string;
  message: string;
  node: string;
  figures: Record<string, number>;
}

export interface EventPage {
  events: ClusterEvent[];
  latest: number;
  oldest: number;
}

/** Samples of a minute each; the last is the minute under way. */
export interface History {
  at: number[];
  tokens_per_second: number[];
  first_p50: (number | null)[];
  first_p99: (number | null)[];
  queue: number[];
  blocks: number[];
  memory: number[];
  nodes: number[];
}

export interface RequestView {
  id: string;
  began: number;
  key: string;
  state: "waiting" | "running" | "ended" | "failed" | "left";
  prompt_tokens: number;
  cached_tokens: number;
  generated: number;
  first: number;
  ended: number;
  tokens_per_second: number;
  reason: string;
}

/** hop, wait, prepare, compute, sample, encode */
export type HopSpan = [number, number, number, number, number, number];

/** at: when its scheduling began. The rest are durations, in the order of the fields. */
export interface StepSpan {
  number: number;
  epoch: number;
  at: number;
  rows: number;
  own: number;
  tokens: number;
  schedule: number;
  encode: number;
  send: number;
  stages: HopSpan[];
  back: number;
  apply: number;
}

export interface RecoverySpan {
  at: number;
  ended: number;
  reason: string;
  node: string;
  silence: number;
  parts: Record<string, number>;
  refilled: number;
  kept: number;
}

export interface Timeline {
  request: RequestView;
  epochs: Record<string, string[]>;
  steps: StepSpan[];
  recoveries: RecoverySpan[];
  next: number;
  lost: number;
}

/** Limits: null: none. token: of a key that was just made. */
export interface KeyView {
  id: string;
  name: string;
  role: "user" | "operator";
  state: "good" | "expired" | "revoked";
  created: number;
  expires: number | null;
  last_used: number | null;
  requests: number;
  prompt_tokens: number;
  completion_tokens: number;
  rpm: number | null;
  tokens_per_minute: number | null;
  concurrency: number | null;
  priority: string;
  token: string | null;
}

export interface ModelHere {
  name: string;
  reference: string;
  size: number;
  here: boolean;
  fits: boolean | null;
  served: boolean;
  about: string;
}

export interface PullView {
  name: string;
  began: number;
  done: number;
  total: number;
  ended: number;
  failed: string;
}

/**
 * state: why it is not served; empty: it is. short: it finds no room. serving: of its `replicas` copies. nodes: the only ones that may
 * serve it; empty: all. absent: those of them that are not there.
 */
export interface LoadedModel {
  name: string;
  reference: string;
  state: string;
  replicas: number;
  serving: number;
  family: string;
  quantization: string;
  context: number;
  parameters: number;
  can: string[];
  short: boolean;
  precision: string;
  priority: number;
  nodes: string[];
  absent: string[];
}

/** sha256: in hexadecimal; empty: not computed. */
export interface RegisteredFile {
  name: string;
  size: number;
  sha256: string;
}

/** A model that was served at least once. version: counts the changes of its files. */
export interface RegisteredModel {
  name: string;
  reference: string;
  family: string;
  quantization: string;
  context: number;
  parameters: number;
  bytes: number;
  can: string[];
  files: RegisteredFile[];
  replicas: number;
  version: number;
}

/** loading: being fetched and read, and not in `loaded` yet. failed: why, by name. */
export interface ModelsView {
  models: ModelHere[];
  pulls: PullView[];
  memory: number;
  loaded: LoadedModel[];
  aliases: Record<string, string>;
  loading: string[];
  failed: Record<string, string>;
  known: RegisteredModel[];
  upstreams: UpstreamView[];
}

/** Another server that answers for some models. state: why it takes no requests; ''. */
export interface UpstreamView {
  url: string;
  state: string;
  models: UpstreamModel[];
}

/** context: tokens of its longest sequence; 0: not known. via: ids of the servers that a request for it passes through. */
export interface UpstreamModel {
  name: string;
  context: number;
  via: string[];
}

/** Of /v1/models. id: a model or an alias. root: the model that answers. */
export interface ModelCard {
  id: string;
  root: string;
}
