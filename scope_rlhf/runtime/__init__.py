"""What surrounds a run: the folder it writes, the versions it ran with, and how it ends. Imports nothing heavy."""

from scope_rlhf.runtime.environment import environment_report, source_commit
from scope_rlhf.runtime.files import read_json_lines, write_json, write_text
from scope_rlhf.runtime.launch import is_main_process, leave_process_group, run_main
from scope_rlhf.runtime.run_folder import RunFolder

__all__ = [
    "RunFolder",
    "environment_report",
    "is_main_process",
    "leave_process_group",
    "read_json_lines",
    "run_main",
    "source_commit",
    "write_json",
    "write_text",
]
