"""Chat templates as the makers of model families write them, shortened to what differs."""

from __future__ import annotations

GPT_OSS = """\
{%- macro typed(spec) -%}{%- if spec.type == "array" -%}{{ typed(spec["items"]) }}[]{%- else -%}{{ spec.type }}{%- endif -%}{%- endmacro -%}
{%- macro namespace_of(name, tools) -%}
    {{- "namespace " + name + " {\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\ntype " + tool.name + " = (" }}
        {%- for key, spec in tool.parameters.properties.items() %}{{- key + ": " }}{{ typed(spec) }}{%- endfor %}
        {{- ") => any;\\n" }}
    {%- endfor %}
    {{- "}" }}
{%- endmacro -%}
{{- "<|start|>system<|message|>Current date: " + strftime_now("%Y") + "\\nReasoning: " + (reasoning_effort or "medium") }}
{%- if builtin_tools %}{{- "\\n" + (builtin_tools | join(", ")) }}{%- endif %}
{{- "<|end|>" }}
{%- if messages[0].role == "system" %}{% set said = messages[0].content %}{% set loop_messages = messages[1:] %}
{%- else %}{% set said = "" %}{% set loop_messages = messages %}{% endif %}
{%- if tools %}{{- "<|start|>developer<|message|>" + said }}{{- namespace_of("functions", tools) }}{{- "<|end|>" }}{% endif %}
{%- set last = namespace(name=none) %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" %}
        {%- if "<|channel|>analysis<|message|>" in message.content %}{{- raise_exception("pass it in 'thinking'") }}{%- endif %}
        {%- if "tool_calls" in message %}
            {%- set call = message.tool_calls[0].function %}
            {%- if message.content and message.thinking %}
                {{- raise_exception("Cannot pass both content and thinking in an assistant message with tool calls!") }}
            {%- elif message.content or message.thinking %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + (message.content or message.thinking) + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=" + "functions." + call.name + "<|channel|>commentary json<|message|>" + (call.arguments | tojson) + "<|call|>" }}
            {%- set last.name = call.name %}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
        {%- endif %}
    {%- elif message.role == "tool" %}
        {{- "<|start|>functions." + last.name + " to=assistant<|channel|>commentary<|message|>" + (message.content | tojson) + "<|end|>" }}
    {%- else %}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{% endif %}"""

DEEPSEEK_V31 = """\
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(is_first=false, system_prompt='', is_last_user=false) %}
{%- for message in messages %}{% if message['role'] == 'system' %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% endif %}{% endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set ns.is_last_user = true %}{{- '<｜User｜>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] %}
        {%- if ns.is_last_user %}{{- '<｜Assistant｜></think>' }}{% endif %}
        {%- set ns.is_last_user = false %}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜tool▁calls▁begin｜>' if loop.first }}{{- '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>', 1)[1] %}{% endif %}
        {{- '<｜Assistant｜></think>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
    {%- if message['role'] == 'tool' %}{% set ns.is_last_user = false %}{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.is_last_user %}{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"""

DEEPSEEK_R1 = """\
{{- bos_token }}{%- for message in messages %}{% if message['role'] == 'system' %}{{- message['content'] }}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<｜User｜>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}{{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}
    {%- if message['role'] == 'tool' %}{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜><think>\\n' }}{% endif %}"""

GLM_45 = """\
[gMASK]<sop>
{%- if tools %}<|system|>
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
</tool_call>{%- endif -%}
{%- macro visible(content) -%}
    {%- if content is string %}{{- content }}
    {%- elif content is iterable and content is not mapping %}{%- for item in content %}{{- item.text }}{%- endfor %}{%- endif -%}
{%- endmacro -%}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ visible(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and not visible(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' %}<|assistant|>
{{- '\\n<think>' + (m.reasoning_content if m.reasoning_content is string else '').strip() + '</think>' }}
{%- if visible(m.content).strip() %}{{ '\\n' + visible(m.content).strip() }}{% endif %}
{%- for tc in m.tool_calls or [] %}
{{ '\\n<tool_call>' + tc.function.name }}
{% for k, v in tc.function.arguments.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v if v is string else v | tojson(ensure_ascii=False) }}</arg_value>
{% endfor %}
</tool_call>{%- endfor %}
{%- elif m.role == 'tool' %}
{{- '<|observation|>' if loop.first or messages[loop.index0 - 1].role != "tool" }}
<tool_response>
{{ m.content }}
</tool_response>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{- '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}{% endif %}"""

GLM_4 = """\
[gMASK]<sop>{%- if tools -%}<|system|>
# 可用工具
{%- for tool in tools %}{%- set function = tool.function if tool.get("function") else tool %}

## {{ function.name }}

{{ function | tojson(indent=4, ensure_ascii=False) }}
{%- endfor %}{%- endif -%}
{%- for message in messages %}
    {%- set meta = message.get("metadata", "") %}
    {%- if message['role'] == 'user' %}<|user|>
{{ message['content'] }}
    {%- elif message['role'] == 'assistant' and not meta %}<|assistant|>
{{ message['content'] }}
    {%- elif message['role'] == 'assistant' and meta %}<|assistant|>{{ meta }}
{{ message['content'] }}
    {%- elif message['role'] == 'observation' %}<|observation|>
{{ message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

GEMMA_3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

GRANITE_33 = """\
{%- if tools and not available_tools %}{% set available_tools = tools %}{% endif %}
{%- if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% set system_message = "Today's Date: " + strftime_now('%Y') + ". You are Granite." %}
    {%- if available_tools %}{% set system_message = system_message + " respond only with <|tool_call|> followed by a JSON list of tools used." %}
    {%- elif thinking %}{% set system_message = system_message + " Write your thoughts between <think></think> and write your response between <response></response>." %}{% endif %}
    {%- if 'citations' in controls and documents %}{% set system_message = system_message + ' Cite.' %}{% endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if available_tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' }}{{- available_tools | tojson(indent=4) }}{{- '<|end_of_text|>\\n' }}{% endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}"""

PHI_4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

SMOLLM_3 = """\
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{{- "<|im_start|>system\\nReasoning Mode: " + ("/think" if enable_thinking else "/no_think") + "\\n" -}}
{%- if xml_tools or python_tools -%}
    {%- set ns = namespace(xml="<tools>\\n") -%}
    {%- for tool in xml_tools[:] -%}{%- set ns.xml = ns.xml ~ (tool | string) ~ "\\n" -%}{%- endfor -%}
    {{- ns.xml + "</tools>\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>" -}}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "assistant" -%}
        {%- generation -%}{{ "<|im_start|>assistant\\n" + ("" if enable_thinking else "<think>\\n\\n</think>\\n") + content.lstrip("\\n") + "<|im_end|>\\n" }}{%- endgeneration -%}
    {%- else -%}{{ "<|im_start|>user\\n" + content + "<|im_end|>\\n" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" + ("" if enable_thinking else "<think>\\n\\n</think>\\n") }}{%- endif -%}"""

COMMAND_R7B = """\
{{ bos_token }}{%- macro number_of(messages, id) %}
    {%- set counter = namespace(value=0) %}
    {%- for message in messages %}{%- for call in message.tool_calls or [] %}{%- if call.id == id %}{{ counter.value }}{%- endif %}{%- set counter.value = counter.value + 1 %}{%- endfor %}{%- endfor %}
{%- endmacro -%}
{%- if tools or documents %}<|SYSTEM_TOKEN|>{% for tool in tools %}{"name": "{{ tool['function']['name'] }}", "description": "{{ tool['function']['description'] }}"}{% endfor %}{% endif %}
{%- for message in messages %}
    {%- if message.role | lower == 'user' %}<|USER_TOKEN|>{{ message.content }}<|END_OF_TURN_TOKEN|>
    {%- elif message.role | lower == 'assistant' %}<|CHATBOT_TOKEN|>{% if message.tool_calls %}<|START_THINKING|>{{ message.reasoning_content }}<|END_THINKING|><|START_ACTION|>[
    {% for call in message.tool_calls %}
    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ call['function']['name'] }}", "parameters": {{ call['function']['arguments'] | tojson }}}{% if not loop.last %},{% endif %}

    {% endfor %}
]<|END_ACTION|>{% else %}<|START_RESPONSE|>{{ message.content }}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>
    {%- elif message.role == 'tool' %}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[{"tool_call_id": "{{ number_of(messages, message.tool_call_id) }}", "results": {{ message.content | tojson }}}]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>{%- break %}
    {%- endif %}
{%- endfor %}<|CHATBOT_TOKEN|>"""
