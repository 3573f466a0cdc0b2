"""Chat templates that behave as those of known models do, one small one for each behaviour.

They are written for these tests. What matters of a model's template is kept: what it trims, moves,
merges, removes or refuses, and the tokens around its turns.
"""

LLAMA_3 = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if loop.first %}{{ '<|head|>system<|/head|>\n\nToday: ' }}"
    "{{ strftime_now('%d %b %Y') if strftime_now is defined else '1 May 2025' }}{{ '\n\n' }}"
    "{% if m.role == 'system' %}{{ m.content | trim }}{% endif %}{{ '<|eot|>' }}{% endif %}"
    "{% if m.role != 'system' %}{{ '<|head|>' + m.role + '<|/head|>\n\n' }}"
    "{{ m.content | trim + '<|eot|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CALLS = (
    "{% for call in m.tool_calls or () %}{{ '\n' if m.content or not loop.first or QWEN_2_5 }}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name }}'
    "{{ '\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
)

QWEN_2_5 = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{{ messages[0].content if messages[0].role == 'system' else 'You are kind.' }}"
    "{{ '\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}"
    "{% elif messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% set QWEN_2_5 = true %}" + _CALLS + "{{ '<|im_end|>\n' }}"
    "{% elif m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Thinking stays after the last question only, and there is a block for it even if it is empty.
_QWEN_3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' and not m.content.startswith('<tool_response>') %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}" + _CALLS + "{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
)
QWEN_3 = _QWEN_3 + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
QWEN_3_WITHOUT_THINKING = _QWEN_3 + (
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
QWEN_3_5 = _QWEN_3 + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

GPT_OSS = (
    "{{ '<|start|>system<|message|>You are a model.<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set later = messages[loop.index:] | selectattr('role', 'equalto', 'user') | list %}"
    "{% if m.thinking and not later %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% if m.content and not m.thinking and not later and loop.index > messages | length - 2 %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{ call.arguments | tojson + '<|call|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|start|>functions.' + loop.previtem.tool_calls[0].function.name }}"
    "{{ ' to=assistant<|channel|>commentary<|message|>' }}"
    "{{ m.content | tojson + '<|end|>' }}"
    "{% else %}{% set role = 'developer' if m.role == 'system' else m.role %}"
    "{{ '<|start|>' + role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

GEMMA_3 = (
    "{{ '<s>' }}{% set first = '' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user and model.') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# There is no start of an answer, and the system prompt stands before the last question.
MISTRAL_3 = (
    "{% set has_system = messages[0].role == 'system' %}"
    "{% set turns = messages[1:] if has_system else messages %}"
    "{% set users = turns | selectattr('role', 'equalto', 'user') | list %}"
    "{{ '<s>' }}{% for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}"
    "{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' }}"
    "{% if has_system and m == users[-1] %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{% endfor %}{{ ']</s>' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ ' ' + m.content | trim + '</s>' }}{% endif %}{% endfor %}"
)

MISTRAL_7 = (
    "{{ '<s>' }}{% if messages[0].role != 'system' %}"
    "{{ '[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
    "{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)

DEEPSEEK_R1 = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)

PHI_4 = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# An answer ends where the next turn begins, and thinking stays after the last question only.
GLM = (
    "{{ '[gMASK]<sop>' }}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|observation|>\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n<think>' }}"
    "{{ m.reasoning_content or '' if loop.index0 > ns.last else '' }}{{ '</think>' }}"
    "{% if m.content.strip() %}{{ '\n' + m.content.strip() }}{% endif %}"
    "{% for call in m.tool_calls or () %}{{ '\n<tool_call>' + call.function.name }}"
    "{% for key, value in call.function.arguments.items() %}"
    "{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' + value + '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# A turn that calls tools holds their results, then what it says; the next answer goes on with it.
GEMMA_4 = (
    "{{ '<s>' }}{% set ns = namespace(before='') %}{% for m in messages %}{% if m.role != 'tool' %}"
    "{% set goes_on = m.role == 'assistant' and ns.before == 'assistant' %}"
    "{% if not goes_on %}"
    "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{% endif %}"
    "{% for call in m.tool_calls or () %}{{ '<|tool_call>call:' + call.function.name + '{' }}"
    "{% for key, value in call.function.arguments.items() %}{{ key + ':' + value }}{% endfor %}"
    "{{ '}<tool_call|>' }}{% endfor %}"
    "{% set later = messages[loop.index:] %}{% set ends = namespace(at=later | length) %}"
    "{% for one in later | reverse %}{% if one.role != 'tool' %}"
    "{% set ends.at = later | length - loop.index %}{% endif %}{% endfor %}"
    "{% set results = later[:ends.at] if m.tool_calls else [] %}"
    "{% for one in results %}"
    "{{ '<|tool_response>response{' + one.content + '}<tool_response|>' }}{% endfor %}"
    "{{ m.content | trim }}"
    "{% set next = (later[ends.at:] + [{'role': 'none'}])[0] %}"
    "{% if m.tool_calls and not results %}{{ '<|tool_response>' }}"
    "{% elif not (results and (next.role == 'assistant' or not m.content)) %}"
    "{{ '<turn|>\n' }}{% endif %}"
    "{% set ns.before = m.role if m.role != 'assistant' or results else 'ended' %}"
    "{% set ns.is_calling = m.tool_calls %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and not ns.is_calling %}{{ '<|turn>model\n' }}{% endif %}"
)

# Takes the arguments of a call as a text.
DEEPSEEK_V3 = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<|Assistant|>' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<|call|>' + call.function.name + '\n```json\n' }}"
    "{{ call.function.arguments + '\n```<|/call|>' }}{% endfor %}{{ '</s>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content + '</s>' }}"
    "{% elif m.role == 'tool' %}{{ '<|result|>' + m.content + '<|/result|>' }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)

# Knows content as a list of parts only, as templates for images do.
PARTS = (
    "{% for m in messages %}{{ m.role + ':' }}"
    "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

# Shows the last question with its answer only.
FORGETFUL = (
    "{% for m in messages[-2:] %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|channel|>",
    "<|message|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<|User|>",
    "<|Assistant|>",
    "<think>",
    "</think>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|turn>",
    "<turn|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|/call|>",
]
