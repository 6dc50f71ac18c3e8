// What a user of the openai package does; prints what came as one JSON object.
import OpenAI from 'openai'

const [baseURL, model] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const messages = [{ role: 'user', content: 'Name a city in France.' }]
const tool = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather of a city',
    parameters: { type: 'object', properties: { city: { type: 'string', maxLength: 12 } }, required: ['city'], additionalProperties: false },
  },
}
const schema = { type: 'object', properties: { city: { type: 'string', maxLength: 12 }, size: { enum: ['small', 'large'] } }, required: ['city', 'size'], additionalProperties: false }
const out = {}

const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 })
out.whole = whole.choices[0]

let text = ''
let usage = null
for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? ''
  usage = chunk.usage ?? usage
}
out.stream = { text, usage }

const called = await client.chat.completions.create({ model, messages, max_tokens: 60, temperature: 0, tools: [tool], tool_choice: 'required' })
out.tool = called.choices[0]

const calling = client.chat.completions.stream({ model, messages, max_tokens: 60, temperature: 0, tools: [tool], tool_choice: 'required' })
out.streamedTool = (await calling.finalChatCompletion()).choices[0]

const shaped = await client.chat.completions.create({
  model, messages, max_tokens: 60, temperature: 0, response_format: { type: 'json_schema', json_schema: { name: 'city', strict: true, schema } },
})
out.shaped = shaped.choices[0].message.content

const response = await client.responses.create({ model, input: 'Name a city in France.', max_output_tokens: 12, temperature: 0 })
out.response = response.output_text

const embedded = await client.embeddings.create({ model, input: ['one', 'two'] })
out.embeddings = embedded.data.map((item) => item.embedding.length)

try {
  await client.chat.completions.create({ model: 'nobody', messages })
} catch (error) {
  out.error = { kind: error.constructor.name, status: error.status, code: error.code, param: error.param }
}
console.log(JSON.stringify(out))
