"""Chat templates of gpt-oss, DeepSeek, Granite and Command R."""

from chat_family import TOOL_JSON, Family, Refused, lines

COMMAND = (
    "{{ bos_token }}%s{%% for m in messages %%}{{ '<|START_OF_TURN_TOKEN|>' + {'user': '<|USER_TOKEN|>', "
    "'assistant': '<|CHATBOT_TOKEN|>'}.get(m.role, '<|SYSTEM_TOKEN|>') }}%s{{ '<|END_OF_TURN_TOKEN|>' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%% endif %%}"
)

CHANNEL_FAMILIES = {
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
