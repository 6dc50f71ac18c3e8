// What a user of the Vercel AI SDK does; prints what came as one JSON object.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateText, jsonSchema, Output, streamText, tool } from 'ai'

const [baseURL, name] = process.argv.slice(2)
const provider = createOpenAICompatible({ name: 'shoal', baseURL, apiKey: 'none', includeUsage: true, supportsStructuredOutputs: true })
const model = provider(name)
const asked = { model, prompt: 'Name a city in France.', temperature: 0, maxRetries: 0 }
const out = {}

const whole = await generateText({ ...asked, maxOutputTokens: 12 })
out.whole = { text: whole.text, finish: whole.finishReason, usage: whole.usage }

const streamed = streamText({ ...asked, maxOutputTokens: 12 })
out.stream = ''
for await (const part of streamed.textStream) out.stream += part

const city = { type: 'object', properties: { city: { type: 'string', maxLength: 12 } }, required: ['city'], additionalProperties: false }
const tools = { get_weather: tool({ description: 'The weather of a city', inputSchema: jsonSchema(city) }) }
const called = await generateText({ ...asked, maxOutputTokens: 60, tools, toolChoice: 'required' })
out.tool = { finish: called.finishReason, calls: called.toolCalls.map((call) => ({ name: call.toolName, input: call.input })) }

const calling = streamText({ ...asked, maxOutputTokens: 60, tools, toolChoice: 'required' })
out.streamedTool = (await calling.toolCalls).map((call) => ({ name: call.toolName, input: call.input }))

const shaped = await generateText({ ...asked, maxOutputTokens: 60, output: Output.object({ schema: jsonSchema(city) }) })
out.shaped = shaped.output

const embedded = await embedMany({ model: provider.embeddingModel(name), values: ['one', 'two'] })
out.embeddings = embedded.embeddings.map((vector) => vector.length)

try {
  await generateText({ ...asked, model: provider('nobody') })
} catch (error) {
  out.error = { status: error.statusCode, message: error.message }
}
console.log(JSON.stringify(out))
