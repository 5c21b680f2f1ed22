"""Names of settings in other tools, and the settings of peftly with the same purpose. May import: nothing.

names       settings of other tools that peftly has under another name
not_needed  settings of other tools that peftly has no use for, with the reason
"""

from peftly.setting_names.names import OTHER_NAMES, OtherName, other_name

__all__ = ["OTHER_NAMES", "OtherName", "other_name"]
