/** Lines for each client, as docs/clients has them, with this server's address, model and key. Pure. */

export interface Server {
  /** Without a slash at its end. */
  url: string;
  model: string;
  /** '': none is needed. */
  key: string;
}

export interface Client {
  name: string;
  /** Of docs/clients. */
  page: string;
  text: (server: Server) => string;
}

/** A string in a shell, whatever it contains. */
export function shell(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, `'\\''`)}'`;
}

/** In Python and JavaScript alike. */
const quoted = (text: string): string => JSON.stringify(text);
const keyOf = (server: Server): string => server.key || "none";

export function curl(server: Server): string {
  const body = JSON.stringify({ model: server.model, stream: true, messages: [{ role: "user", content: "Hello" }] });
  const key = server.key ? ` \\\n  -H ${shell(`Authorization: Bearer ${server.key}`)}` : "";
  return `curl -N ${shell(`${server.url}/v1/chat/completions`)}${key} \\\n  -d ${shell(body)}`;
}

export const CLIENTS: Client[] = [
  { name: "curl", page: "../api.md", text: curl },
  {
    name: "openai for Python",
    page: "openai-python.md",
    text: (s) => `from openai import OpenAI

client = OpenAI(base_url=${quoted(`${s.url}/v1`)}, api_key=${quoted(keyOf(s))})
messages = [{"role": "user", "content": "Name a city in France."}]
for chunk in client.chat.completions.create(model=${quoted(s.model)}, messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="")`,
  },
  {
    name: "openai for Node.js",
    page: "openai-node.md",
    text: (s) => `import OpenAI from 'openai'

const client = new OpenAI({ baseURL: ${quoted(`${s.url}/v1`)}, apiKey: ${quoted(keyOf(s))} })
const stream = await client.chat.completions.create({
  model: ${quoted(s.model)},
  messages: [{ role: 'user', content: 'Name a city in France.' }],
  stream: true,
})
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? '')`,
  },
  {
    name: "Claude Code",
    page: "claude-code.md",
    text: (s) => `export ANTHROPIC_BASE_URL=${shell(s.url)}
export ANTHROPIC_AUTH_TOKEN=${shell(keyOf(s))}
export ANTHROPIC_MODEL=${shell(s.model)}
export ANTHROPIC_DEFAULT_HAIKU_MODEL=${shell(s.model)}
export ANTHROPIC_DEFAULT_SONNET_MODEL=${shell(s.model)}
export ANTHROPIC_DEFAULT_OPUS_MODEL=${shell(s.model)}
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
claude`,
  },
  {
    name: "anthropic for Python",
    page: "claude-code.md",
    text: (s) => `import anthropic

client = anthropic.Anthropic(base_url=${quoted(s.url)}, api_key=${quoted(keyOf(s))})
messages = [{"role": "user", "content": "Name a city in France."}]
with client.messages.stream(model=${quoted(s.model)}, max_tokens=100, messages=messages) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)`,
  },
  {
    name: "Ollama's clients",
    page: "ollama.md",
    text: (s) => `export OLLAMA_HOST=${shell(s.url)}${s.key ? `\n# and the header Authorization: Bearer ${s.key}` : ""}`,
  },
  {
    name: "LangChain",
    page: "langchain.md",
    text: (s) => `from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=${quoted(`${s.url}/v1`)}, api_key=${quoted(keyOf(s))}, model=${quoted(s.model)})
print(model.invoke("Name a city in France.").content)`,
  },
  {
    name: "LlamaIndex",
    page: "llamaindex.md",
    text: (s) => `from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(model=${quoted(s.model)}, api_base=${quoted(`${s.url}/v1`)}, api_key=${quoted(keyOf(s))}, is_chat_model=True)
print(llm.complete("Name a city in France."))`,
  },
  {
    name: "LiteLLM",
    page: "litellm.md",
    text: (s) => `import litellm

answer = litellm.completion(
    model=${quoted(`openai/${s.model}`)},
    api_base=${quoted(`${s.url}/v1`)},
    api_key=${quoted(keyOf(s))},
    messages=[{"role": "user", "content": "Name a city in France."}],
)`,
  },
  {
    name: "AI SDK",
    page: "ai-sdk.md",
    text: (s) => `import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { streamText } from 'ai'

const shoal = createOpenAICompatible({ name: 'shoal', baseURL: ${quoted(`${s.url}/v1`)}, apiKey: ${quoted(keyOf(s))}, includeUsage: true })
const { textStream } = streamText({ model: shoal(${quoted(s.model)}), prompt: 'Name a city in France.' })
for await (const part of textStream) process.stdout.write(part)`,
  },
  {
    name: "Open WebUI",
    page: "open-webui.md",
    text: (s) => `OPENAI_API_BASE_URL=${shell(`${s.url}/v1`)} OPENAI_API_KEY=${shell(keyOf(s))} open-webui serve`,
  },
  {
    name: "lm-evaluation-harness",
    page: "lm-evaluation-harness.md",
    text: (s) => `${s.key ? `export OPENAI_API_KEY=${shell(s.key)}\n` : ""}lm_eval run --tasks arc_easy --model local-completions \\
  --model_args ${shell(`model=${s.model},base_url=${s.url}/v1/completions,tokenizer_backend=remote,tokenized_requests=True,num_concurrent=8`)}`,
  },
  {
    name: "shoal chat",
    page: "README.md",
    text: (s) => `shoal chat --url ${shell(`${s.url}/v1`)}${s.key ? ` --api-key ${shell(s.key)}` : ""}`,
  },
];
