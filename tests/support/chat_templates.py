"""Chat templates of public model families, written from the rules of their formats, with the texts they should give."""

from chat_templates_channels import CHANNEL_FAMILIES
from chat_templates_chatml import CHATML_FAMILIES
from chat_templates_text import TEXT_FAMILIES
from chat_templates_tokens import TOKEN_FAMILIES

FAMILIES = {**CHATML_FAMILIES, **TOKEN_FAMILIES, **CHANNEL_FAMILIES, **TEXT_FAMILIES}
