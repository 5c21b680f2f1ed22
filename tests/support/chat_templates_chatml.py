"""Chat templates of families with the tokens of ChatML, and those of Phi."""

from chat_family import NOT_SHOWN, TOOL_JSON, Family, lines

IM = ("<|im_start|>", "<|im_end|>")
CHATML_TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
CHATML_CUE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + CHATML_TURN + "{% endfor %}" + CHATML_CUE
CHATML_ONE = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[yes<|im_end|>]]\n"
CHATML_TWO = (
    CHATML_ONE + "<|im_start|>user\nthe train was late<|im_end|>\n<|im_start|>assistant\n[[no, never<|im_end|>]]\n"
)
CHATML_SYSTEM = "<|im_start|>system\nsay it in one word<|im_end|>\n" + CHATML_ONE
CHATML_NO_CALL = (
    "<|im_start|>user\nwhat time is it?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    "<|im_start|>tool\n12:30<|im_end|>\n<|im_start|>assistant\n[[It is half past.<|im_end|>]]\n"
)
QWEN_TOOLS_SYSTEM = (
    "<|im_start|>system\nYou are Qwen.\n\n# Tools\n\n<tools>\n" + TOOL_JSON + "\n</tools><|im_end|>\n"
    "<|im_start|>user\nwhat time is it?<|im_end|>\n"
)
QWEN_CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
QWEN_RESPONSE = "<|im_start|>user\n<tool_response>\n12:30\n</tool_response><|im_end|>\n"
QWEN_ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")

CHATML_FAMILIES = {
    "chatml (Yi, Hermes)": Family(
        template=CHATML,
        special=IM,
        one=CHATML_ONE,
        two=CHATML_TWO,
        system=CHATML_SYSTEM,
        tools=CHATML_NO_CALL,
        eos="<|endoftext|>",
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "chatml with generation marks": Family(
        template=lines("""
            {% for m in messages %}
            {{ '<|im_start|>' + m['role'] + '\\n' }}
            {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}
            {% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}
            {{ '\\n' }}
            {% endfor %}
            """)
        + CHATML_CUE,
        special=IM,
        one=CHATML_ONE,
        two=CHATML_TWO,
        system=CHATML_SYSTEM,
        tools=CHATML_NO_CALL,
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "chatml whose tokens the tokenizer lacks": Family(
        template=CHATML.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|over|>"),
        special=(),
        one="<|turn|>user\nhello<|over|>\n<|turn|>assistant\n[[yes<|over|>]]\n",
        two="<|turn|>user\nhello<|over|>\n<|turn|>assistant\n[[yes<|over|>]]\n"
        "<|turn|>user\nthe train was late<|over|>\n<|turn|>assistant\n[[no, never<|over|>]]\n",
        system="<|turn|>system\nsay it in one word<|over|>\n"
        "<|turn|>user\nhello<|over|>\n<|turn|>assistant\n[[yes<|over|>]]\n",
        tools="<|turn|>user\nwhat time is it?<|over|>\n<|turn|>assistant\n<|over|>\n"
        "<|turn|>tool\n12:30<|over|>\n<|turn|>assistant\n[[It is half past.<|over|>]]\n",
        eos="</s>",
        stop_texts=("<|over|>",),
        findings=NOT_SHOWN,
    ),
    "qwen2": Family(
        template="{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
        + CHATML,
        special=IM,
        one="<|im_start|>system\nYou help.<|im_end|>\n" + CHATML_ONE,
        two="<|im_start|>system\nYou help.<|im_end|>\n" + CHATML_TWO,
        system=CHATML_SYSTEM,
        tools="<|im_start|>system\nYou help.<|im_end|>\n" + CHATML_NO_CALL,
        eos="<|im_end|>",
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "qwen2.5": Family(
        template=lines("""
            {{ '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else 'You are Qwen.') }}
            {% if tools %}
            {{ '\\n\\n# Tools\\n\\n<tools>' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
            {{ '\\n</tools>' }}
            {% endif %}
            {{ '<|im_end|>\\n' }}
            {% for m in messages %}
            {% if m.role == 'tool' %}
            {% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
            {{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
            {% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
            {% elif m.tool_calls %}
            {{ '<|im_start|>assistant' }}{% if m.content %}{{ '\\n' + m.content }}{% endif %}
            {% for call in m.tool_calls %}
            {{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{ call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
            {% endfor %}
            {{ '<|im_end|>\\n' }}
            {% elif not (loop.first and m.role == 'system') %}
            {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
            {% endif %}
            {% endfor %}""")
        + CHATML_CUE,
        special=IM,
        added=QWEN_ADDED[:2],
        one="<|im_start|>system\nYou are Qwen.<|im_end|>\n" + CHATML_ONE,
        two="<|im_start|>system\nYou are Qwen.<|im_end|>\n" + CHATML_TWO,
        system=CHATML_SYSTEM,
        tools=f"{QWEN_TOOLS_SYSTEM}<|im_start|>assistant\n[[{QWEN_CALL}]]\n{QWEN_RESPONSE}"
        "<|im_start|>assistant\n[[It is half past.<|im_end|>]]\n",
        stop_ids=("<|im_end|>",),
    ),
    "qwen3": Family(
        template=lines("""
            {% set ns = namespace(query=0) %}
            {% for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
            {% if tools %}
            {{ '<|im_start|>system\\nYou are Qwen.\\n\\n# Tools\\n\\n<tools>' }}
            {% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
            {% endif %}
            {% for m in messages %}
            {% if m.role == 'tool' %}
            {{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
            {% elif m.role == 'assistant' %}
            {% set reasoning = m.reasoning_content or '' %}
            {{ '<|im_start|>assistant\\n' }}
            {% if loop.index0 > ns.query and (loop.last or reasoning) %}
            {{ '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
            {% endif %}
            {{ m.content }}
            {% for call in m.tool_calls or [] %}
            {{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {% if call.function.arguments is string %}{{ call.function.arguments }}
            {% else %}{{ call.function.arguments | tojson }}{% endif %}
            {{ '}\\n</tool_call>' }}
            {% endfor %}
            {{ '<|im_end|>\\n' }}
            {% else %}
            {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
            {% endif %}
            {% endfor %}""")
        + CHATML_CUE,
        special=IM,
        added=QWEN_ADDED,
        one="<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nyes<|im_end|>]]\n",
        two=(
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\n"
            "the train was late<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nno, never<|im_end|>]]\n",
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nyes<|im_end|>]]\n",
        ),
        system="<|im_start|>system\nsay it in one word<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\n\n</think>\n\nyes<|im_end|>]]\n",
        tools=(
            f"{QWEN_TOOLS_SYSTEM}<|im_start|>assistant\n{QWEN_CALL}\n{QWEN_RESPONSE}"
            "<|im_start|>assistant\n[[<think>\n\n</think>\n\nIt is half past.<|im_end|>]]\n",
            f"{QWEN_TOOLS_SYSTEM}<|im_start|>assistant\n[[<think>\n\n</think>\n\n{QWEN_CALL}]]\n",
        ),
        stop_ids=("<|im_end|>",),
    ),
    "qwen3 that always thinks": Family(
        template="{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<|im_start|>assistant\\n<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + m.content }}"
        "{{ '<|im_end|>\\n' }}{% else %}" + CHATML_TURN + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
        special=IM,
        added=QWEN_ADDED,
        one="<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n[[\n</think>\n\nyes<|im_end|>]]\n",
        two=(
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\n"
            "the train was late<|im_end|>\n<|im_start|>assistant\n<think>\n[[\n</think>\n\nno, never<|im_end|>]]\n",
            "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n[[\n</think>\n\nyes<|im_end|>]]\n",
        ),
        system="<|im_start|>system\nsay it in one word<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n[[\n</think>\n\nyes<|im_end|>]]\n",
        tools="<|im_start|>user\nwhat time is it?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
        "<|im_start|>tool\n12:30<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n[[\n</think>\n\nIt is half past.<|im_end|>]]\n",
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "phi 3": Family(
        template="{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        eos="<|endoftext|>",
        one="<|user|>\nhello<|end|>\n<|assistant|>\n[[yes<|end|>]]\n<|endoftext|>",
        two="<|user|>\nhello<|end|>\n<|assistant|>\n[[yes<|end|>]]\n"
        "<|user|>\nthe train was late<|end|>\n<|assistant|>\n[[no, never<|end|>]]\n<|endoftext|>",
        system="<|system|>\nsay it in one word<|end|>\n"
        "<|user|>\nhello<|end|>\n<|assistant|>\n[[yes<|end|>]]\n<|endoftext|>",
        tools="<|user|>\nwhat time is it?<|end|>\n<|assistant|>\n<|end|>\n<|tool|>\n12:30<|end|>\n"
        "<|assistant|>\n[[It is half past.<|end|>]]\n<|endoftext|>",
        stop_ids=("<|end|>",),
        findings=NOT_SHOWN,
    ),
    "phi 4": Family(
        template="{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        special=(*IM, "<|im_sep|>"),
        one="<|im_start|>user<|im_sep|>hello<|im_end|><|im_start|>assistant<|im_sep|>[[yes<|im_end|>]]",
        two="<|im_start|>user<|im_sep|>hello<|im_end|><|im_start|>assistant<|im_sep|>[[yes<|im_end|>]]"
        "<|im_start|>user<|im_sep|>the train was late<|im_end|><|im_start|>assistant<|im_sep|>[[no, never<|im_end|>]]",
        system="<|im_start|>system<|im_sep|>say it in one word<|im_end|>"
        "<|im_start|>user<|im_sep|>hello<|im_end|><|im_start|>assistant<|im_sep|>[[yes<|im_end|>]]",
        tools="<|im_start|>user<|im_sep|>what time is it?<|im_end|><|im_start|>assistant<|im_sep|><|im_end|>"
        "<|im_start|>tool<|im_sep|>12:30<|im_end|><|im_start|>assistant<|im_sep|>[[It is half past.<|im_end|>]]",
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "smollm 2": Family(
        template="{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}"
        "{% endif %}" + CHATML,
        special=IM,
        one="<|im_start|>system\nYou are SmolLM.<|im_end|>\n" + CHATML_ONE,
        two="<|im_start|>system\nYou are SmolLM.<|im_end|>\n" + CHATML_TWO,
        system=CHATML_SYSTEM,
        tools="<|im_start|>system\nYou are SmolLM.<|im_end|>\n" + CHATML_NO_CALL,
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "smollm 3 without thinking": Family(
        template=lines("""
            {% for m in messages %}
            {% if m.role == 'assistant' %}
            {% generation %}
            {{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}
            {% endgeneration %}
            {% else %}
            {{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\\n' + m.content + '<|im_end|>\\n' }}
            {% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{% endif %}"""),
        special=IM,
        added=("<think>", "</think>"),
        one="<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n[[yes<|im_end|>]]\n",
        two="<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n[[yes<|im_end|>]]\n"
        "<|im_start|>user\nthe train was late<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[no, never<|im_end|>]]\n",
        system="<|im_start|>system\nsay it in one word<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n[[yes<|im_end|>]]\n",
        tools="<|im_start|>user\nwhat time is it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n<|im_end|>\n"
        "<|im_start|>user\n12:30<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[It is half past.<|im_end|>]]\n",
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
    "internlm 2": Family(
        template="{{ bos_token }}" + CHATML,
        special=IM,
        bos="<s>",
        eos="</s>",
        one="<s>" + CHATML_ONE,
        two="<s>" + CHATML_TWO,
        system="<s>" + CHATML_SYSTEM,
        tools="<s>" + CHATML_NO_CALL,
        stop_ids=("<|im_end|>",),
        findings=NOT_SHOWN,
    ),
}
