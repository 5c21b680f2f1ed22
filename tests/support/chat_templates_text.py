"""Chat templates of families that name the speakers in plain text, or end no turn."""

from chat_family import NOT_SHOWN, NOTHING_SHOWN, PAIR, TOOL_JSON, Family, Refused, lines

TEXT_FAMILIES = {
    "falcon instruct": Family(
        template=lines("""
            {% for m in messages %}
            {{ {'user': 'User:', 'assistant': 'Falcon:', 'system': 'System:'}[m.role] + ' ' + m.content + '\\n\\n' }}
            {% endfor %}
            {% if add_generation_prompt %}{{ 'Falcon:' }}{% endif %}"""),
        special=(),
        eos="<|endoftext|>",
        one="User: hello\n\nFalcon:[[ yes<|endoftext|>]]",
        two=(
            "User: hello\n\nFalcon: yes\n\nUser: the train was late\n\nFalcon:[[ no, never<|endoftext|>]]",
            "User: hello\n\nFalcon:[[ yes<|endoftext|>]]",
        ),
        system="System: say it in one word\n\nUser: hello\n\nFalcon:[[ yes<|endoftext|>]]",
        tools=Refused("the chat template"),
    ),
    "bloomz": Family(
        template=PAIR
        % (
            "{{ 'User: ' + m.content + '\\n' }}",
            "{{ 'Assistant: ' + m.content + '\\n' }}",
            "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        ),
        special=(),
        eos="</s>",
        one="User: hello\nAssistant: [[yes</s>]]",
        two=(
            "User: hello\nAssistant: yes\nUser: the train was late\nAssistant: [[no, never</s>]]",
            "User: hello\nAssistant: [[yes</s>]]",
        ),
        system="User: hello\nAssistant: [[yes</s>]]",
        tools="User: what time is it?\nAssistant: \nAssistant: [[It is half past.</s>]]",
        findings=NOTHING_SHOWN,
        system_findings=("hidden_messages",),
    ),
    "alpaca": Family(
        template=PAIR
        % (
            "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}",
            "{{ '### Response:\\n' + m.content + '\\n\\n' }}",
            "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
        ),
        special=(),
        eos="</s>",
        one="### Instruction:\nhello\n\n### Response:\n[[yes</s>]]",
        two=(
            "### Instruction:\nhello\n\n### Response:\nyes\n\n"
            "### Instruction:\nthe train was late\n\n### Response:\n[[no, never</s>]]",
            "### Instruction:\nhello\n\n### Response:\n[[yes</s>]]",
        ),
        system="### Instruction:\nhello\n\n### Response:\n[[yes</s>]]",
        tools="### Instruction:\nwhat time is it?\n\n### Response:\n\n\n### Response:\n[[It is half past.</s>]]",
        findings=NOTHING_SHOWN,
        system_findings=("hidden_messages",),
    ),
    "vicuna": Family(
        template="{{ 'A chat. ' }}"
        + PAIR
        % (
            "{{ 'USER: ' + m.content + ' ' }}",
            "{{ 'ASSISTANT: ' + m.content + eos_token }}",
            "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ),
        special=(),
        eos="</s>",
        one="A chat. USER: hello ASSISTANT:[[ yes</s>]]",
        two="A chat. USER: hello ASSISTANT:[[ yes</s>]]USER: the train was late ASSISTANT:[[ no, never</s>]]",
        system="A chat. USER: hello ASSISTANT:[[ yes</s>]]",
        tools="A chat. USER: what time is it? ASSISTANT: </s>ASSISTANT:[[ It is half past.</s>]]",
        stop_ids=("</s>",),
        findings=NOTHING_SHOWN,
        system_findings=("hidden_messages",),
    ),
    "openchat": Family(
        template=lines("""
            {{ bos_token }}
            {% for m in messages %}
            {% if m.role == 'system' %}{{ m.content + '<|end_of_turn|>' }}
            {% else %}{{ 'GPT4 Correct ' + m.role.title() + ': ' + m.content + '<|end_of_turn|>' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"""),
        special=("<|end_of_turn|>",),
        bos="<s>",
        eos="</s>",
        one="<s>GPT4 Correct User: hello<|end_of_turn|>GPT4 Correct Assistant:[[ yes<|end_of_turn|>]]",
        two="<s>GPT4 Correct User: hello<|end_of_turn|>GPT4 Correct Assistant:[[ yes<|end_of_turn|>]]"
        "GPT4 Correct User: the train was late<|end_of_turn|>GPT4 Correct Assistant:[[ no, never<|end_of_turn|>]]",
        system="<s>say it in one word<|end_of_turn|>"
        "GPT4 Correct User: hello<|end_of_turn|>GPT4 Correct Assistant:[[ yes<|end_of_turn|>]]",
        tools="<s>GPT4 Correct User: what time is it?<|end_of_turn|>GPT4 Correct Assistant: <|end_of_turn|>"
        "GPT4 Correct Tool: 12:30<|end_of_turn|>GPT4 Correct Assistant:[[ It is half past.<|end_of_turn|>]]",
        stop_ids=("<|end_of_turn|>",),
        findings=NOT_SHOWN,
    ),
    "nemotron mini": Family(
        template=lines("""
            {% for m in messages %}
            {{ '<extra_id_0>System' if m.role == 'system' else '<extra_id_1>' + m.role.title() }}
            {{ '\\n' + m.content + '\\n' }}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}"""),
        special=("<extra_id_0>", "<extra_id_1>"),
        eos="</s>",
        one="<extra_id_1>User\nhello\n<extra_id_1>Assistant\n[[yes</s>]]",
        two=(
            "<extra_id_1>User\nhello\n<extra_id_1>Assistant\nyes\n"
            "<extra_id_1>User\nthe train was late\n<extra_id_1>Assistant\n[[no, never</s>]]",
            "<extra_id_1>User\nhello\n<extra_id_1>Assistant\n[[yes</s>]]",
        ),
        system="<extra_id_0>System\nsay it in one word\n<extra_id_1>User\nhello\n<extra_id_1>Assistant\n[[yes</s>]]",
        tools="<extra_id_1>User\nwhat time is it?\n<extra_id_1>Assistant\n\n<extra_id_1>Tool\n12:30\n"
        "<extra_id_1>Assistant\n[[It is half past.</s>]]",
        findings=NOT_SHOWN,
    ),
    "glm 4": Family(
        template=lines("""
            {{ '[gMASK]<sop>' }}
            {% if tools %}{{ '<|system|>\\n' + (tools | tojson) }}{% endif %}
            {% for m in messages %}
            {% for call in m.tool_calls or [] %}
            {{ '<|assistant|>' + call.function.name + '\\n' + (call.function.arguments | tojson) }}
            {% endfor %}
            {% if m.content %}{{ '<|' + m.role + '|>\\n' + m.content }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""),
        special=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"),
        eos="<|endoftext|>",
        one="[gMASK]<sop><|user|>\nhello<|assistant|>[[\nyes<|endoftext|>]]",
        two=(
            "[gMASK]<sop><|user|>\nhello<|assistant|>\nyes<|user|>\nthe train was late"
            "<|assistant|>[[\nno, never<|endoftext|>]]",
            "[gMASK]<sop><|user|>\nhello<|assistant|>[[\nyes<|endoftext|>]]",
        ),
        system="[gMASK]<sop><|system|>\nsay it in one word<|user|>\nhello<|assistant|>[[\nyes<|endoftext|>]]",
        tools=(
            "[gMASK]<sop><|system|>\n["
            + TOOL_JSON
            + ']<|user|>\nwhat time is it?<|assistant|>get_time\n{"city": "Oslo"}'
            "<|observation|>\n12:30<|assistant|>[[\nIt is half past.<|endoftext|>]]",
            "[gMASK]<sop><|system|>\n[" + TOOL_JSON + "]<|user|>\nwhat time is it?"
            '<|assistant|>[[get_time\n{"city": "Oslo"}<|endoftext|>]]',
        ),
    ),
    "minicpm": Family(
        template=PAIR % ("{{ '<用户>' + m.content.strip() + '<AI>' }}", "{{ m.content.strip() }}", ""),
        special=(),
        eos="</s>",
        one="<用户>hello<AI>[[yes</s>]]",
        two=("<用户>hello<AI>yes<用户>the train was late<AI>[[no, never</s>]]", "<用户>hello<AI>[[yes</s>]]"),
        system="<用户>hello<AI>[[yes</s>]]",
        tools="<用户>what time is it?<AI>[[It is half past.</s>]]",
        findings=NOTHING_SHOWN,
        system_findings=("hidden_messages",),
    ),
    "olmo 2": Family(
        template=lines("""
            {{ bos_token }}
            {% for m in messages %}
            {{ '<|' + m.role + '|>\\n' + m.content }}
            {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
            {% if not loop.last or m.role != 'assistant' %}{{ '\\n' }}{% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""),
        special=(),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        one="<|endoftext|><|user|>\nhello\n<|assistant|>\n[[yes<|endoftext|>]]",
        two="<|endoftext|><|user|>\nhello\n<|assistant|>\n[[yes<|endoftext|>]]\n"
        "<|user|>\nthe train was late\n<|assistant|>\n[[no, never<|endoftext|>]]",
        system="<|endoftext|><|system|>\nsay it in one word\n<|user|>\nhello\n<|assistant|>\n[[yes<|endoftext|>]]",
        tools="<|endoftext|><|user|>\nwhat time is it?\n<|assistant|>\n<|endoftext|>\n<|tool|>\n12:30\n"
        "<|assistant|>\n[[It is half past.<|endoftext|>]]",
        stop_ids=("<|endoftext|>",),
        findings=NOT_SHOWN,
    ),
    "stablelm 2": Family(
        template="{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        special=(),
        eos="<|endoftext|>",
        one="<|user|>\nhello<|endoftext|>\n<|assistant|>\n[[yes<|endoftext|>]]\n",
        two="<|user|>\nhello<|endoftext|>\n<|assistant|>\n[[yes<|endoftext|>]]\n"
        "<|user|>\nthe train was late<|endoftext|>\n<|assistant|>\n[[no, never<|endoftext|>]]\n",
        system="<|system|>\nsay it in one word<|endoftext|>\n"
        "<|user|>\nhello<|endoftext|>\n<|assistant|>\n[[yes<|endoftext|>]]\n",
        tools="<|user|>\nwhat time is it?<|endoftext|>\n<|assistant|>\n<|endoftext|>\n<|tool|>\n12:30<|endoftext|>\n"
        "<|assistant|>\n[[It is half past.<|endoftext|>]]\n",
        stop_ids=("<|endoftext|>",),
        findings=NOT_SHOWN,
    ),
    "exaone": Family(
        template="{% for m in messages %}{{ '[|' + m.role + '|]' + m.content }}"
        "{{ '\\n' if m.role == 'user' else '[|endofturn|]\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
        special=("[|endofturn|]",),
        eos="[|endofturn|]",
        one="[|user|]hello\n[|assistant|][[yes[|endofturn|]]]\n",
        two="[|user|]hello\n[|assistant|][[yes[|endofturn|]]]\n"
        "[|user|]the train was late\n[|assistant|][[no, never[|endofturn|]]]\n",
        system="[|system|]say it in one word[|endofturn|]\n[|user|]hello\n[|assistant|][[yes[|endofturn|]]]\n",
        tools="[|user|]what time is it?\n[|assistant|][|endofturn|]\n[|tool|]12:30[|endofturn|]\n"
        "[|assistant|][[It is half past.[|endofturn|]]]\n",
        stop_ids=("[|endofturn|]",),
        findings=NOT_SHOWN,
    ),
    "zephyr": Family(
        template=lines("""
            {% for m in messages %}
            {% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + eos_token + '\\n' }}
            {% elif m.role == 'system' %}{{ '<|system|>\\n' + m.content + eos_token + '\\n' }}
            {% elif m.role == 'assistant' %}{{ '<|assistant|>\\n' + m.content + eos_token + '\\n' }}
            {% endif %}
            {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
            {% endfor %}"""),
        special=(),
        eos="</s>",
        one="<|user|>\nhello</s>\n<|assistant|>\n[[yes</s>]]\n",
        two="<|user|>\nhello</s>\n<|assistant|>\n[[yes</s>]]\n"
        "<|user|>\nthe train was late</s>\n<|assistant|>\n[[no, never</s>]]\n",
        system="<|system|>\nsay it in one word</s>\n<|user|>\nhello</s>\n<|assistant|>\n[[yes</s>]]\n",
        tools="<|user|>\nwhat time is it?</s>\n<|assistant|>\n</s>\n<|assistant|>\n[[It is half past.</s>]]\n",
        stop_ids=("</s>",),
        findings=NOTHING_SHOWN,
    ),
}
