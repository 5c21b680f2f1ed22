"""Chat templates of families with their own special tokens around each turn."""

from chat_family import ALTERNATE, ALTERNATING, NOT_SHOWN, TOOL_JSON, Family, Refused, lines

COMMAND = (
    "{{ bos_token }}%s{%% for m in messages %%}{{ '<|START_OF_TURN_TOKEN|>' + {'user': '<|USER_TOKEN|>', "
    "'assistant': '<|CHATBOT_TOKEN|>'}.get(m.role, '<|SYSTEM_TOKEN|>') }}%s{{ '<|END_OF_TURN_TOKEN|>' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%% endif %%}"
)

TOKEN_FAMILIES = {
    "llama 2": Family(
        template=lines(
            """
            {% set system = messages[0].content if messages[0].role == 'system' else '' %}
            {% set rest = messages[1:] if system else messages %}
            {% for m in rest %}"""
            + ALTERNATING
            + """
            {% if m.role == 'user' %}
            {{ bos_token + '[INST] ' }}
            {% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}
            {{ m.content.strip() + ' [/INST]' }}
            {% else %}
            {{ ' ' + m.content.strip() + ' ' + eos_token }}
            {% endif %}
            {% endfor %}"""
        ),
        special=(),
        bos="<s>",
        eos="</s>",
        one="<s>[INST] hello [/INST][[ yes </s>]]",
        two="<s>[INST] hello [/INST][[ yes </s>]]<s>[INST] the train was late [/INST][[ no, never </s>]]",
        system="<s>[INST] <<SYS>>\nsay it in one word\n<</SYS>>\n\nhello [/INST][[ yes </s>]]",
        tools=Refused(ALTERNATE),
        stop_ids=("</s>",),
    ),
    "llama 3": Family(
        template=lines("""
            {% for m in messages %}
            {% if loop.first %}{{ bos_token }}{% endif %}
            {{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""),
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        one="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]",
        two="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nthe train was late<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[no, never<|eot_id|>]]",
        system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nsay it in one word<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]",
        tools="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nwhat time is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|>"
        "<|start_header_id|>tool<|end_header_id|>\n\n12:30<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[It is half past.<|eot_id|>]]",
        stop_ids=("<|eot_id|>",),
        findings=NOT_SHOWN,
    ),
    "llama 3.1": Family(
        template=lines("""
            {{ bos_token }}
            {% for m in messages %}
            {% if m.tool_calls is defined %}
            {% if m.tool_calls | length != 1 %}{{ raise_exception('one tool call at a time') }}{% endif %}
            {% set call = m.tool_calls[0].function %}
            {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
            {{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
            {% elif m.role in ('tool', 'ipython') %}
            {{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson) + '<|eot_id|>' }}
            {% else %}
            {{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
            {% if tools and loop.first %}{{ (tools[0] | tojson) + '\\n\\n' }}{% endif %}
            {{ m.content | trim + '<|eot_id|>' }}
            {% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""),
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        one="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]",
        two="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nthe train was late<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[no, never<|eot_id|>]]",
        system="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nsay it in one word<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[yes<|eot_id|>]]",
        tools="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n" + TOOL_JSON + "\n\nwhat time is it?"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '[[{"name": "get_time", "parameters": {"city": "Oslo"}}<|eot_id|>]]'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"12:30"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[It is half past.<|eot_id|>]]",
        stop_ids=("<|eot_id|>",),
    ),
    "mistral v1": Family(
        template="{{ bos_token }}{% for m in messages %}"
        + ALTERNATING
        + "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + eos_token }}{% endfor %}",
        special=(),
        bos="<s>",
        eos="</s>",
        one="<s>[INST] hello [/INST][[yes</s>]]",
        two="<s>[INST] hello [/INST][[yes</s>]][INST] the train was late [/INST][[no, never</s>]]",
        system=Refused(ALTERNATE),
        tools=Refused(ALTERNATE),
        stop_ids=("</s>",),
    ),
    "mistral v3": Family(
        template=lines("""
            {{ bos_token }}
            {% set system = messages[0].content if messages[0].role == 'system' else '' %}
            {% set rest = messages[1:] if system else messages %}
            {% set ns = namespace(last=-1) %}
            {% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
            {% for m in rest %}
            {% if m.role == 'user' %}
            {% if tools and loop.index0 == ns.last %}
            {{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
            {% endif %}
            {{ '[INST] ' }}{% if loop.index0 == ns.last and system %}{{ system + '\\n\\n' }}{% endif %}
            {{ m.content + '[/INST]' }}
            {% elif m.tool_calls is defined and m.tool_calls is not none %}
            {{ '[TOOL_CALLS] [' }}
            {% for call in m.tool_calls %}
            {% if call.id | length != 9 %}{{ raise_exception('Tool call IDs must have 9 characters') }}{% endif %}
            {{ (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
            {% endfor %}
            {{ eos_token }}
            {% elif m.role == 'assistant' %}
            {{ ' ' + m.content + eos_token }}
            {% elif m.role == 'tool' %}
            {{ '[TOOL_RESULTS] {"content": "' + m.content + '", "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
            {% endif %}
            {% endfor %}"""),
        special=(
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        bos="<s>",
        eos="</s>",
        one="<s>[INST] hello[/INST][[ yes</s>]]",
        two="<s>[INST] hello[/INST][[ yes</s>]][INST] the train was late[/INST][[ no, never</s>]]",
        system="<s>[INST] say it in one word\n\nhello[/INST][[ yes</s>]]",
        tools="<s>[AVAILABLE_TOOLS] [" + TOOL_JSON + "][/AVAILABLE_TOOLS][INST] what time is it?[/INST]"
        '[[[TOOL_CALLS] [{"arguments": {"city": "Oslo"}, "name": "get_time", "id": "abcdefghi"}]</s>]]'
        '[TOOL_RESULTS] {"content": "12:30", "call_id": "abcdefghi"}[/TOOL_RESULTS][[ It is half past.</s>]]',
        stop_ids=("</s>",),
    ),
    "mistral tekken": Family(
        template=lines("""
            {{ bos_token }}
            {% for m in messages %}
            {% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
            {% elif m.role == 'user' %}
            {% if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
            {{ '[INST]' + m.content + '[/INST]' }}
            {% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
            {% else %}
            {{ m.content }}
            {% for call in m.tool_calls or [] %}
            {% set arguments = call.function.arguments %}
            {{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}
            {{ arguments if arguments is string else arguments | tojson }}
            {% endfor %}
            {{ eos_token }}
            {% endif %}
            {% endfor %}"""),
        special=(
            "[INST]",
            "[/INST]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        bos="<s>",
        eos="</s>",
        one="<s>[INST]hello[/INST][[yes</s>]]",
        two="<s>[INST]hello[/INST][[yes</s>]][INST]the train was late[/INST][[no, never</s>]]",
        system="<s>[SYSTEM_PROMPT]say it in one word[/SYSTEM_PROMPT][INST]hello[/INST][[yes</s>]]",
        tools="<s>[AVAILABLE_TOOLS][" + TOOL_JSON + "][/AVAILABLE_TOOLS][INST]what time is it?[/INST]"
        '[[[TOOL_CALLS]get_time[ARGS]{"city": "Oslo"}</s>]][TOOL_RESULTS]12:30[/TOOL_RESULTS][[It is half past.</s>]]',
        stop_ids=("</s>",),
    ),
    "gemma 2": Family(
        template="{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        + ALTERNATING
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
        "{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        one="<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n",
        two="<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n"
        "<start_of_turn>user\nthe train was late<end_of_turn>\n<start_of_turn>model\n[[no, never<end_of_turn>]]\n",
        system=Refused("System role not supported"),
        tools=Refused(ALTERNATE),
        stop_ids=("<end_of_turn>",),
    ),
    "gemma 3": Family(
        template=lines(
            """
            {{ bos_token }}
            {% set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
            {% set rest = messages[1:] if system else messages %}
            {% for m in rest %}"""
            + ALTERNATING
            + """
            {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
            {{ system if loop.first else '' }}{{ m.content | trim + '<end_of_turn>\\n' }}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
        ),
        special=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        one="<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n",
        two="<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n[[yes<end_of_turn>]]\n"
        "<start_of_turn>user\nthe train was late<end_of_turn>\n<start_of_turn>model\n[[no, never<end_of_turn>]]\n",
        system="<bos><start_of_turn>user\nsay it in one word\n\nhello<end_of_turn>\n"
        "<start_of_turn>model\n[[yes<end_of_turn>]]\n",
        tools=Refused(ALTERNATE),
        stop_ids=("<end_of_turn>",),
    ),
    "gpt-oss": Family(
        template=lines("""
            {{ '<|start|>system<|message|>You are ChatGPT.<|end|>' }}
            {% set first = messages[0].role in ('developer', 'system') %}
            {% if first or tools %}
            {{ '<|start|>developer<|message|>' }}
            {% if first %}{{ '# Instructions\\n\\n' + messages[0].content }}{% endif %}
            {% if tools %}{{ '# Tools\\n\\n' + (tools | tojson) }}{% endif %}
            {{ '<|end|>' }}
            {% endif %}
            {% for m in messages %}
            {% if m.tool_calls %}
            {% set call = m.tool_calls[0].function %}
            {{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
            {{ (call.arguments | tojson) + '<|call|>' }}
            {% elif m.role == 'assistant' %}
            {{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}
            {{ '<|return|>' if loop.last else '<|end|>' }}
            {% elif m.role == 'tool' %}
            {{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' }}
            {{ (m.content | tojson) + '<|end|>' }}
            {% elif not (loop.first and first) %}
            {{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
            {% endif %}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""),
        special=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
        eos="<|return|>",
        one="<|start|>system<|message|>You are ChatGPT.<|end|><|start|>user<|message|>hello<|end|>"
        "<|start|>assistant[[<|channel|>final<|message|>yes<|return|>]]",
        two=(
            "<|start|>system<|message|>You are ChatGPT.<|end|><|start|>user<|message|>hello<|end|>"
            "<|start|>assistant<|channel|>final<|message|>yes<|end|><|start|>user<|message|>the train was late<|end|>"
            "<|start|>assistant[[<|channel|>final<|message|>no, never<|return|>]]",
            "<|start|>system<|message|>You are ChatGPT.<|end|><|start|>user<|message|>hello<|end|>"
            "<|start|>assistant[[<|channel|>final<|message|>yes<|return|>]]",
        ),
        system="<|start|>system<|message|>You are ChatGPT.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nsay it in one word<|end|>"
        "<|start|>user<|message|>hello<|end|><|start|>assistant[[<|channel|>final<|message|>yes<|return|>]]",
        tools="<|start|>system<|message|>You are ChatGPT.<|end|>"
        "<|start|>developer<|message|># Tools\n\n[" + TOOL_JSON + "]<|end|>"
        "<|start|>user<|message|>what time is it?<|end|><|start|>assistant"
        '[[ to=functions.get_time<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>]]'
        '<|start|>functions.get_time to=assistant<|channel|>commentary<|message|>"12:30"<|end|>'
        "<|start|>assistant[[<|channel|>final<|message|>It is half past.<|return|>]]",
        stop_ids=("<|return|>", "<|call|>"),
    ),
    "deepseek v3": Family(
        template=lines("""
            {{ bos_token }}
            {% for m in messages %}
            {% if m.role == 'system' %}{{ m.content }}
            {% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}
            {% elif m.role == 'tool' %}
            {{ '<｜tool▁outputs▁begin｜>' + m.content + '<｜tool▁outputs▁end｜>' }}
            {% elif m.content is none %}
            {{ '<｜Assistant｜>' }}
            {% for call in m.tool_calls %}
            {{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' }}
            {{ call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
            {% endfor %}
            {{ eos_token }}
            {% else %}
            {{ '' if messages[loop.index0 - 1].role == 'tool' else '<｜Assistant｜>' }}{{ m.content + eos_token }}
            {% endif %}
            {% endfor %}
            {% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<｜Assistant｜>' }}{% endif %}"""),
        special=(
            "<｜begin▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>",
        ),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        one="<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜>[[yes<｜end▁of▁sentence｜>]]",
        two="<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜>[[yes<｜end▁of▁sentence｜>]]"
        "<｜User｜>the train was late<｜Assistant｜>[[no, never<｜end▁of▁sentence｜>]]",
        system="<｜begin▁of▁sentence｜>say it in one word<｜User｜>hello<｜Assistant｜>[[yes<｜end▁of▁sentence｜>]]",
        tools="<｜begin▁of▁sentence｜><｜User｜>what time is it?<｜Assistant｜>"
        '[[<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜>'
        "<｜end▁of▁sentence｜>]]<｜tool▁outputs▁begin｜>12:30<｜tool▁outputs▁end｜>"
        "[[It is half past.<｜end▁of▁sentence｜>]]",
        stop_ids=("<｜end▁of▁sentence｜>",),
        findings=("hidden_tools",),
    ),
    "deepseek r1": Family(
        template="{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'system' %}{{ m.content }}{% elif m.role == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}",
        special=("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        added=("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        one=Refused("the prompt goes on with '<think>\\n', and the turn with 'yes"),
        two=Refused("the prompt goes on with '<think>\\n', and the turn with 'no, never"),
        system=Refused("the prompt goes on with '<think>\\n', and the turn with 'yes"),
        tools=Refused("the prompt goes on with '<think>\\n', and the turn with 'It is half past."),
        stop_ids=("<｜end▁of▁sentence｜>",),
    ),
    "granite 3": Family(
        template=lines("""
            {% if tools %}
            {{ '<|start_of_role|>available_tools<|end_of_role|>' + (tools | tojson) + '<|end_of_text|>\\n' }}
            {% endif %}
            {% for m in messages %}
            {{ '<|start_of_role|>' + ('tool_response' if m.role == 'tool' else m.role) + '<|end_of_role|>' }}
            {% if m.tool_calls %}{{ '<|tool_call|>' + (m.tool_calls | map(attribute='function') | list | tojson) }}
            {% else %}{{ m.content }}{% endif %}
            {{ '<|end_of_text|>\\n' }}
            {% endfor %}
            {% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""),
        special=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        eos="<|end_of_text|>",
        one="<|start_of_role|>user<|end_of_role|>hello<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[[yes<|end_of_text|>]]\n",
        two="<|start_of_role|>user<|end_of_role|>hello<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[[yes<|end_of_text|>]]\n"
        "<|start_of_role|>user<|end_of_role|>the train was late<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[[no, never<|end_of_text|>]]\n",
        system="<|start_of_role|>system<|end_of_role|>say it in one word<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>hello<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[[yes<|end_of_text|>]]\n",
        tools="<|start_of_role|>available_tools<|end_of_role|>[" + TOOL_JSON + "]<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>what time is it?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
        '[[<|tool_call|>[{"arguments": {"city": "Oslo"}, "name": "get_time"}]<|end_of_text|>]]\n'
        "<|start_of_role|>tool_response<|end_of_role|>12:30<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[[It is half past.<|end_of_text|>]]\n",
        stop_ids=("<|end_of_text|>",),
    ),
    "command r": Family(
        template={
            "default": COMMAND % ("", "{{ m.content }}"),
            "tool_use": COMMAND
            % (
                "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + (tools | tojson) + '<|END_OF_TURN_TOKEN|>' }}",
                "{% if m.tool_calls %}{{ 'Action:' + (m.tool_calls | map(attribute='function') | list | tojson) }}"
                "{% else %}{{ m.content }}{% endif %}",
            ),
        },
        special=(
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        one="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[yes<|END_OF_TURN_TOKEN|>]]",
        two="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[yes<|END_OF_TURN_TOKEN|>]]"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>the train was late<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[no, never<|END_OF_TURN_TOKEN|>]]",
        system="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>say it in one word<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[yes<|END_OF_TURN_TOKEN|>]]",
        tools="<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>[" + TOOL_JSON + "]<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>what time is it?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        '[[Action:[{"arguments": {"city": "Oslo"}, "name": "get_time"}]<|END_OF_TURN_TOKEN|>]]'
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>12:30<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[[It is half past.<|END_OF_TURN_TOKEN|>]]",
        stop_ids=("<|END_OF_TURN_TOKEN|>",),
    ),
}
