# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What holds for every test."""

from __future__ import annotations

import signal

# Whoever starts this may have blocked signals, and every program under test would inherit that.
signal.pthread_sigmask(signal.SIG_SETMASK, ())
# A shell that starts this in the background has it ignore Ctrl+C, nohup has it ignore a lost connection, and
# so would every program under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
