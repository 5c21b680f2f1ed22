"""Chat templates of Llama, Mistral and Gemma."""

from chat_family import ALTERNATE, ALTERNATING, NOT_SHOWN, TOOL_JSON, Family, Refused, lines

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
}
