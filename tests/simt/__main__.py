"""Runs one function: reads the pickled call from stdin and writes the result to stdout."""

from __future__ import annotations

import pickle
import sys

from simt import Fault, Library

path, function, arguments, schedule = pickle.load(sys.stdin.buffer)
fault = None
try:
    Library(path).run_here(function, arguments, schedule, guard=0)
except Fault as error:
    fault = (error.kind, str(error).partition(": ")[2])
sys.stdout.buffer.write(pickle.dumps((fault, arguments)))
