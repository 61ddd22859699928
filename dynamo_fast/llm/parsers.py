"""The names of the parsers that Dynamo 1.6.1's frontend has, for the options of a worker and for its model card."""

from __future__ import annotations

__all__ = ["get_reasoning_parser_names", "get_tool_parser_names"]

_TOOLS = """
deepseek-v4 deepseek_v3 deepseek_v3_1 deepseek_v3_2 deepseek_v4 deepseek_v41 deepseekv4 default gemma-4 gemma4 glm45 glm47
harmony hermes inkling jamba kimi-k3 kimi_k2 kimi_k25 kimi_k3 llama3_json minimax-m3 minimax-m3-nom minimax_m2 minimax_m3
minimax_m3_nom mistral muse muse_glimmer nemotron_deci nemotron_nano phi4 pythonic qwen25 qwen3 qwen3_coder
"""
_REASONING = """
basic deepseek-v4 deepseek_r1 deepseek_v3 deepseek_v3_1 deepseek_v3_2 deepseek_v4 deepseek_v41 deepseekv4 gemma-4 gemma4
glm45 glm47 gpt_oss granite inkling kimi kimi-k3 kimi_k2 kimi_k25 kimi_k3 minimax-m3 minimax_append_think minimax_m2
minimax_m3 mistral muse muse_glimmer nemotron3 nemotron_deci nemotron_nano nemotron_v3 qwen3 qwen3_coder step3
"""


def get_tool_parser_names() -> list[str]:
    """Values for `ModelRuntimeConfig.tool_call_parser`, in alphabetical order. (Dynamo's list has no order.)"""
    return _TOOLS.split()


def get_reasoning_parser_names() -> list[str]:
    """Values for `ModelRuntimeConfig.reasoning_parser`, in alphabetical order. (Dynamo's list has no order.)"""
    return _REASONING.split()
