"""Writes the manual pages and the shells' completions from the declarations in passthru/ and the prose here.

`python man/make.py` writes them; with --check it only says whether they are current, and has man(1) and
mandoc(1), where they are installed, look for mistakes in them. A further page is a line in PAGES.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

sys.path.insert(0, str(HERE))

import completion  # noqa: E402

from passthru import commands, errors, mount_helper, options  # noqa: E402
from passthru._version import VERSION  # noqa: E402

DATE = "2026-11-20"  # of the last change to the prose here

HEAD = r""".\" Written by man/make.py: do not edit.
.TH PASSTHRU 8 @DATE@ "passthru @VERSION@" "System Manager's Manual"
.SH NAME
passthru \- mirror a directory or a file through FUSE over io_uring
.SH SYNOPSIS
.B passthru
.RI [ options ]
.I SOURCE MOUNTPOINT
.br
.B passthru
.RI [ options ]
.B \-o source=\c
.I SOURCE MOUNTPOINT
.br
.B passthru help
.RI [ SUBCOMMAND ]
.br
.B passthru
.I SUBCOMMAND
\&...
.PP
The subcommands are below, under COMMANDS;
.B python \-m passthru
is the same command.
.SH DESCRIPTION
.B passthru
mounts a filesystem on
.I MOUNTPOINT
that mirrors the directory
.IR SOURCE :
every operation on it is carried out in the source.
It speaks the kernel's FUSE protocol itself, over an io_uring where the kernel
offers that, and over
.I /dev/fuse
where it does not.
.PP
The source is held open from the start: if it is renamed, or if something is
mounted over it, the mount goes on to show the same directory.
The mountpoint may be the source itself or a directory within it.
.PP
.I SOURCE
may also be one regular file or block device.
Then
.I MOUNTPOINT
is an existing regular file, perhaps the source itself; the mount shows a
regular file of the source's size, and ends as any other does.
A file grows when something is written past its end or when it is truncated to
more; with
.B \-\-fixed\-size
it does not.
A block device never does, and a read-only one is mounted read-only.
Of what keeps its size, a write that crosses the end is short, and one past it
fails with ENOSPC; truncating it, by
.BR open (2)
with O_TRUNC too, fails with EPERM.
Holes may be punched, and
.BR lseek (2)
finds them in a file; a block device is data everywhere.
.PP
Without
.B \-f
the command returns when the mount is usable, and the daemon goes on in the
background.
If the mount cannot be made, the command prints one line on standard error and
ends with one of the exit codes below, and nothing is mounted.
.PP
Root mounts directly; everybody else needs
.BR fusermount3 (1).
The mount ends with
.BR umount (8)
(root),
.B fusermount3 \-u
(others),
or with a SIGINT, SIGTERM or SIGHUP to the daemon.
If files are still open in it when such a signal comes, the mount is detached.
.PP
Run by root, the daemon makes files with the user id, group id and umask of
the process that asks for them; the kernel checks that process's right to
everything else, by the mode bits and POSIX ACLs of the source.
Run by another user, it carries out all operations as that user, and makes
files with the umask of the process that asks for them.
.PP
Linux 6.1 is the oldest kernel that is served.
"""

TRANSPORTS = r""".SH TRANSPORTS
.TP
.B ring
Requests and replies travel through an io_uring (Linux 6.14 and newer), with
one queue for each possible CPU.
The kernel's parameter
.I /sys/module/fuse/parameters/enable_uring
has to be Y; its default is N.
Root can set it with
.B \-\-enable\-uring
or beforehand; it stays as it was set.
A few requests, such as INTERRUPT, always come by
.IR /dev/fuse .
.TP
.B dev
Requests are read from
.I /dev/fuse
by a number of threads.
.TP
.B auto
The ring if it can be had, else
.IR /dev/fuse .
With
.B \-f
a line on standard error says which one it is, and why.
.SH DIALECTS
The forms of the ring's protocol.
Asking for one that the kernel does not have is an error.
.TP
.B per\-entry
Each entry of a queue has a payload buffer of its own.
Linux 6.14 and newer.
.TP
.B bufpool
The entries of a queue share
.B \-\-payload\-buffers
buffers, which are pinned unless
.B \-\-no\-pin\-buffers
is given or the kernel refuses it.
Linux 7.3.
.TP
.B bufring
The same, set up in another way; header slots may be pinned too.
Kernels with the "buffer rings" series.
.TP
.B auto
The last two where they are offered, else
.BR per\-entry .
.PP
With zero-copy, for which the last two dialects and CAP_SYS_ADMIN are needed,
READ and WRITE are done with the kernel's own pages.
With
.BR "\-\-zero\-copy on" ,
a mount that cannot have it on its ring fails.
With dialect
.B bufring
the kernel does not ask by file, so
.B auto
is then for all files.
.SH FILE DATA
By default root's daemon has the kernel read and write the files of the source
itself (kernel passthrough, Linux 6.9); READ and WRITE do not reach the daemon.
This is not done with
.BR \-\-writeback
or
.BR \-\-direct\-io ,
for sources that are stacked filesystems (overlayfs, another mount with kernel
passthrough)
or of fixed size, for files that are append-only or opened with O_APPEND for
writing, for files that have their set-user-ID or set-group-ID bit when they are
opened for writing, and for files that are open without it already.
.PP
If a file that is passed through is changed by
.BR mmap (2),
its size and times show in the mount when it is closed, or when the time of
.B \-\-attr\-timeout
is over.
.PP
Access times are kept by the source.
.B \-o noatime
and
.B \-o strictatime
make the daemon work on a private copy of the source's mount, of that mode.
.SH LOCKS
Locks of
.BR flock (2)
and record locks of
.BR fcntl (2)
are taken on the source, and hold against its other users, unless
.B \-\-local\-locks
is given.
A deadlock of record locks (EDEADLK) is found among processes that wait in the
mount, if the source is local; not one that goes by a lock taken beside it.
.SH SUBMOUNTS
What is mounted below the source is shown, unless
.B \-x
is given.
All of it has the mount's device number; inode numbers are changed so that no
two files have the same.
"""

LOGGING = r""".SH LOGGING
Each message is one line.
With
.B \-f
it goes to standard error, in the background to systemd's journal, or if that is
not there to
.BR syslog (3),
facility daemon.
The journal's records have the fields PASSTHRU_SOURCE and PASSTHRU_MOUNTPOINT.
In the background
.B \-\-log stderr
keeps standard error open.
.PP
.B \-\-debug\-fuse
writes a line for each request and one for its reply, in the form of libfuse's
debug output; "cqe" came by the ring, "dev" by
.IR /dev/fuse .
Data that the kernel passes through makes no requests.
"""

WATCHING = r""".PP
.BR list ", " status ", " stats " and " top
read what the daemon's threads count, and ask the mount nothing, so they work
on one that hangs.
With kernel passthrough, READ and WRITE of most files do not reach the daemon
and are not counted.
Latencies are those in the daemon, from when it sees a request to its answer.
A daemon that was killed leaves a mount that
.B list
shows as dead.
.B top
draws a screen with the Python library rich (Debian: python3\-rich); without it,
and where standard output is no terminal, it prints plain text.
.PP
What
.B set
has changed holds for what the kernel asks from then on: files that are open,
and attributes that it keeps, stay as they are.
"""

ENVIRONMENT = r"""They are also those of the subcommands: 2 for what is wrong with their own
command line, 4 where
.BR status ", " stats ", " top " or " set
find no passthru mount, 1 where its daemon has gone.
.B check
ends with the code that the mount would end with, and
.B list
with 0, also if there is nothing to list.
Mounts by
.BR mount (8)
have other codes, those of
.BR mount.passthru (8).
.SH ENVIRONMENT
.TP
.B XDG_RUNTIME_DIR
Below it are the status pages of an ordinary user's mounts, else in
.IR /tmp .
The subcommands look in all these places.
.TP
.B NOTIFY_SOCKET
With
.BR \-f ,
where a service manager is told that the mount is usable
.RB ( sd_notify (3)).
.TP
.B PATH
Where
.BR fusermount3 (1)
is looked for.
.TP
.B COLUMNS
How wide the text of
.B \-\-help
is.
"""

TAIL = r""".SH FILES
.TP
.I /run/passthru/MAJOR:MINOR
The status pages of root's mounts, each named after the device of its mount as
in /proc/self/mountinfo, which
.BR "passthru status" " and " "passthru top"
read, and beside each the socket
.I MAJOR:MINOR.sock
of
.BR "passthru set" .
Only root and the owner can use them; others' are in
.I $XDG_RUNTIME_DIR/passthru
or
.IR /tmp/passthru\-UID .
.TP
.I /sys/module/fuse/parameters/enable_uring
Y if the kernel offers FUSE over io_uring.
.TP
.I /proc/sys/fs/fuse/max_pages_limit
The kernel's limit on the size of a request, in pages (Linux 6.13 and newer;
256 before).
.SH EXAMPLES
Mount in the foreground, by the ring or not at all:
.PP
.RS 4
.nf
passthru \-f \-\-enable\-uring \-\-transport ring /srv/data /mnt
.fi
.RE
.PP
Mount read-only, and unmount:
.PP
.RS 4
.nf
passthru \-o ro,fsname=data /srv/data /mnt
umount /mnt
.fi
.RE
.SH NOTES
FUSE does not carry FIEMAP and FICLONE, and of other
.BR ioctl (2)
requests only those for inode flags, project ids
.RB ( chattr "(1), " lsattr (1))
and the inode's version are served.
The mount cannot be exported by NFS.
Setting attributes of
.IR system.* ,
other than POSIX ACLs, is refused.
Changes made in the source show in the mount when the time of
.B \-\-attr\-timeout
or
.B \-\-entry\-timeout
is over, and cause no
.BR inotify (7)
events there.
.PP
With
.B \-\-idmapped
root's mount may be idmapped.
.PP
For mounts that
.B fusermount3
makes,
.BR nosuid " and " nodev
are always set, and
.BR nosymfollow ", " noatime ", " nodiratime ", " strictatime ,
.B context
and its kin are refused.
.PP
A source on a read-only filesystem is mounted read-only, unless a filesystem
below it may be written to.
.SH BUGS
What differs from the source, and why, is in docs/limits.md of the source tree.
Nothing here makes
.BR sync " and " dirsync
mounts, so these words are refused;
.B mount
\-o remount,rw of a mount whose source is read-only succeeds, and writes fail.
If the daemon is killed, operations fail with ENOTCONN until the mount is
unmounted.
.SH SEE ALSO
.BR chattr (1),
.BR fusermount3 (1),
.BR fuse (4),
.BR io_uring (7),
.BR mount (8),
.BR mount.passthru (8),
.BR umount (8)
"""


HELPER_HEAD = r""".\" Written by man/make.py: do not edit.
.TH MOUNT.PASSTHRU 8 @DATE@ "passthru @VERSION@" "System Manager's Manual"
.SH NAME
mount.passthru, mount.fuse.passthru \- mount(8)'s helpers for passthru
.SH SYNOPSIS
.B mount \-t passthru
.RB [ \-o
.IR OPTIONS ]
.I SOURCE MOUNTPOINT
.br
.B mount.passthru
.I SOURCE MOUNTPOINT
.RB [ \-sfnv ]
.RB [ \-N
.IR NAMESPACE ]
.RB [ \-o
.IR OPTIONS ]
.RB [ \-t
.IR TYPE ]
.br
.B passthru install\-helper
.RB [ \-\-prefix
.IR DIR ]
.RB [ \-\-remove ]
.SH DESCRIPTION
With these helpers
.BR mount (8)
and
.BR fstab (5)
know the filesystem types
.B passthru
and
.BR fuse.passthru ,
which are the same.
The second is what a mount's type is shown as.
They are called by
.BR mount (8),
seldom by hand, and return when the mount is usable; its daemon goes on in the
background.
.PP
.B passthru install\-helper
installs them into
.IR /sbin ,
where alone
.BR mount (8)
looks, or into
.IR DIR /sbin,
together with the template of systemd units into
.IR DIR /lib/systemd/system.
They call the installation of passthru that has installed them, wherever it is,
and no
.I PYTHONPATH
or the like of the caller changes that.
Installing again renews them;
.B \-\-remove
takes them away.
Files of these names that
.B install\-helper
has not made are left alone, and it ends with an error then.
"""

HELPER_MORE = r""".SH REMOUNTING
.B mount \-o remount
changes
.BR ro ", " rw ", " nosuid ", " nodev ", " noexec ", " nosymfollow
and their opposites, and what
.B passthru set
can change, such as
.BR attr_timeout .
All other options must be those that the mount has, which they are if the line
in
.BR fstab (5)
is that of the mount; else nothing is changed, and the error names them.
Given both
.I SOURCE
and
.I MOUNTPOINT
but no type,
.BR mount (8)
does not call the helper: the kernel changes the flags, and says nothing of the
rest.
.SH MOUNTS BY ORDINARY USERS
By a line in
.BR fstab (5)
with
.B user
or
.B users
any user may mount, and whoever has mounted may unmount with
.BR umount (8).
The daemon then runs as that user, with
.BR fusermount3 (1),
which wants the mountpoint to be that user's, and
.B user_allow_other
in
.I /etc/fuse.conf
for
.BR allow_other .
.SH SYSTEMD
Of a line in
.BR fstab (5)
.BR systemd.mount (5)
makes a mount unit.
If
.I SOURCE
is on a filesystem that is mounted too, the unit waits for that by itself,
except with
.BR _netdev :
then
.BI x\-systemd.requires\-mounts\-for= SOURCE
has to be given.
.BR nofail ,
.BR x\-systemd.automount ,
.B x\-systemd.mount\-timeout=
and the others mean what they mean for other filesystems.
.PP
A mount that is to be a service of its own, with its state and log in
.BR systemctl (1),
is described by a file
.IR /etc/passthru/NAME.conf :
.PP
.RS 4
.nf
SOURCE=/srv/data
MOUNTPOINT=/mnt/data
OPTIONS=ro,attr_timeout=5
.fi
.RE
.PP
It starts with
.BI "systemctl start passthru@" NAME
and, once
.B enable
is given in place of
.BR start ,
with the machine.
OPTIONS may be left out.
The service counts as started when the mount is usable
.RB ( Type=notify );
to stop it is to unmount.
"""

HELPER_TAIL = r""".SH FILES
.TP
.IR /sbin/mount.passthru ", " /sbin/mount.fuse.passthru
The helpers.
.TP
.I /usr/lib/systemd/system/passthru@.service
The template of units.
.TP
.I /etc/passthru/NAME.conf
SOURCE, MOUNTPOINT and OPTIONS of
.IR passthru@NAME.service ,
in the form of
.BR systemd.exec (5),
EnvironmentFile.
.SH EXAMPLES
A line in
.BR fstab (5):
.PP
.RS 4
.nf
/srv/data  /mnt/data  passthru  ro,nofail,attr_timeout=5  0 0
.fi
.RE
.PP
Mount it, make it writable, unmount it:
.PP
.RS 4
.nf
mount /mnt/data
mount \-o remount,rw /mnt/data
umount /mnt/data
.fi
.RE
.SH SEE ALSO
.BR fusermount3 (1),
.BR fstab (5),
.BR systemd.mount (5),
.BR mount (8),
.BR passthru (8),
.BR umount (8)
"""


def roff(text: str) -> str:
    """Text as roff shows it unchanged."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text.startswith(".") else text


def prose(text: str) -> str:
    """A help text as a sentence: hyphens within words stay hyphens."""
    words = [roff(w) if w.startswith("-") or ".." in w else w.replace("'", "\\(aq") for w in text.split()]
    text = " ".join(words)
    return fill(text[0].upper() + text[1:] + ".")


def fill(text: str) -> str:
    """Text in lines of less than 80 characters."""
    return textwrap.fill(text, 79, break_on_hyphens=False, break_long_words=False)


def facts(f: Any) -> str:
    """Range and default of an option that takes a value, each a sentence."""
    return "".join("\n" + prose(fact) for fact in options.facts(f))


def switches() -> str:
    """The options of the command line."""
    out = [".SH OPTIONS"]
    for f in fields(options.Options):
        if not f.metadata or not f.metadata["flags"] or f.metadata["hidden"]:
            continue
        m = f.metadata
        value = f" \\fI{roff(m['metavar'])}\\fR" if m["parse"] else ""
        out += [".TP", ", ".join(f"\\fB{roff(flag)}\\fR{value}" for flag in m["flags"])]
        out.append(prose(m["help"]) + facts(f))
        if m["no_flags"]:
            out.append("The opposite: " + ", ".join(f"\\fB{roff(flag)}\\fR" for flag in m["no_flags"]) + ".")
    out += [
        ".TP", "\\fB\\-o\\fR \\fIOPTION\\fR[,\\fIOPTION\\fR...]",
        "Mount options, see below; may be given more than once."
        "\nWhat is given as an option of its own wins over the same thing in \\fB\\-o\\fR."
        "\nA backslash before a comma makes the comma part of a value.",
        ".TP", "\\fB\\-h\\fR, \\fB\\-\\-help\\fR", "Show a summary of the options.",
        ".TP", "\\fB\\-V\\fR, \\fB\\-\\-version\\fR", "Show the version.",
    ]
    return "\n".join(out) + "\n"


def mount_options() -> str:
    """The words of -o."""
    out = [".SH MOUNT OPTIONS"]
    for f in fields(options.Options):
        if not f.metadata or not f.metadata["o"]:
            continue
        m = f.metadata
        name = f"\\fB{roff(m['o'])}\\fR" + (f"=\\fI{roff(m['metavar'])}\\fR" if m["parse"] else "")
        out += [".TP", name]
        if m["flags"]:
            out.append(f"The same as \\fB{roff(m['flags'][-1])}\\fR.")
        else:
            out.append(prose(m["help"]) + facts(f))
        if m["no"]:
            out.append(f"The opposite: \\fB{roff(m['no'])}\\fR.")
    refused = [line for word, why in options.REFUSED.items() for line in (
        ".TP", f"\\fB{roff(word)}\\fR", prose(f"refused: {why}"))]
    source = [".TP", f"\\fB{options.SOURCE_WORD}\\fR=\\fISOURCE\\fR",
              "The source; then MOUNTPOINT alone is given, as with libfuse's passthrough_ll."]
    return "\n".join([*out, *source, *refused, ".PP", *ignored_words()]) + "\n"


def ignored_words() -> list[str]:
    """The words of -o that are for others, in lines."""
    words = ", ".join(f"\\fB{roff(w)}\\fR" for w in sorted(options.IGNORED, key=lambda w: w.strip("_")))
    return [
        "These words are accepted and change nothing, since they speak to",
        ".BR mount (8)", "or", ".BR fstab (5),", "or ask libfuse for what is so here anyway:", fill(words + ","),
        fill(", ".join(f"\\fB{roff(w)}\\fR=\\fI...\\fR" for w in sorted(options.IGNORED_VALUES))
             + " and all that begin with \\fBx\\-\\fR or \\fBX\\-\\fR."),
    ]


def aliases() -> str:
    """What libfuse and its passthrough_hp call these things."""
    out = [
        ".SH LIBFUSE'S, BINDFS'S AND MERGERFS'S NAMES",
        "These options of libfuse, of its examples passthrough_hp and passthrough_ll, of",
        ".BR bindfs (1)", "and of", ".BR mergerfs (1)", "mean the same here,", "as do",
        fill("\\fB\\-\\-foreground\\fR, \\fB\\-\\-debug\\fR, \\fB\\-\\-nopassthrough\\fR, "
             "\\fB\\-\\-direct\\-io\\fR, \\fB\\-\\-selinux\\fR, and of \\fB\\-o\\fR \\fBallow_other\\fR, "
             "\\fBallow_root\\fR, \\fBauto_unmount\\fR, \\fBdefault_permissions\\fR, \\fBmax_read\\fR, "
             "\\fBfsname\\fR and \\fBsubtype\\fR."),
    ]
    for a in options.ALIASES:
        value = f"\\fI{roff(a.metavar)}\\fR" if a.metavar else ""
        names = [f"\\fB{roff(flag)}\\fR" + (f" {value}" if value else "") for flag in a.flags]
        if a.o:
            names.append(f"\\fB\\-o {roff(a.o)}\\fR" + (f"={value}" if value else ""))
        out += [".TP", ", ".join(names), prose(a.help) + ("" if a.whose == "libfuse" else f"\n({a.whose})")]
    out += [
        ".PP", "Not served, since what is shown is what is in the source:", "bindfs's",
        "\\fBperms\\fR, \\fBchmod\\-\\fR..., \\fBchown\\-\\fR... and their kin, libfuse's \\fBuid\\fR, \\fBgid\\fR",
        "and \\fBumask\\fR, and mergerfs's policies and several branches.",
        "\\fBkernel_cache\\fR is \\fB\\-\\-cache always\\fR, without its timeouts."]
    return "\n".join(out) + "\n"


def exit_codes(codes: Iterable[tuple[int, str | None]] = errors.EXIT_CODES) -> str:
    """The exit codes."""
    out = [".SH EXIT STATUS"]
    for code, text in codes:
        assert text
        text = text.rstrip(".")
        out += [".TP", f".B {code}", prose(text)]
    return "\n".join(out) + "\n"


class Declared(Exception):
    """Carries a subcommand's parser."""


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser that a subcommand makes: it is stopped where it would parse."""
    def stop(self: argparse.ArgumentParser, *_: object) -> None:
        raise Declared(self)

    real, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, stop  # type: ignore
    try:
        commands.run(name, [])
    except Declared as e:
        parser: argparse.ArgumentParser = e.args[0]
        return parser
    finally:
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]
    raise AssertionError(f"passthru {name} parses no arguments")


def arguments(a: argparse.Action) -> str:
    """An argument of a subcommand, as in the head of its entry."""
    value = "" if a.nargs == 0 else f"\\fI{roff(str(a.metavar or a.dest.upper()))}\\fR"
    if not a.option_strings:
        return value
    return ", ".join(f"\\fB{roff(o)}\\fR" + (f" {value}" if value else "") for o in a.option_strings)


def subcommands() -> str:
    """The subcommands, each with its arguments."""
    out = [".SH COMMANDS", "A source whose name is one of these words is given as", ".IR ./NAME ."]
    for name in commands.COMMANDS:
        p = parser_of(name)
        actions = [a for a in p._actions
                   if not isinstance(a, argparse._HelpAction) and not getattr(a, "of_mount", False)]
        usage = " ".join(
            f"[{arguments(a)}]" if (a.option_strings and not a.required) or a.nargs in ("?", "*")
            else arguments(a) + ("..." if a.nargs == "+" else "") for a in actions)
        if any(getattr(a, "of_mount", False) for a in p._actions):
            usage = f"[options] {usage}"
        assert p.description, name
        out += [".TP", f"\\fBpassthru {roff(name)}\\fR {usage}".rstrip(), prose(p.description.rstrip("."))]
        described = [a for a in actions if a.help]
        if described:
            out.append(".RS")
            for a in described:
                out += [".TP", arguments(a), prose(str(a.help).replace("%%", "%"))]
            out.append(".RE")
    return "\n".join(out) + "\n"


def passthru() -> str:
    """passthru(8)."""
    head = HEAD.replace("@VERSION@", VERSION).replace("@DATE@", DATE)
    said = switches() + mount_options() + aliases() + subcommands() + WATCHING
    return head + said + TRANSPORTS + LOGGING + exit_codes() + ENVIRONMENT + TAIL


def helper_options() -> str:
    """The switches and the words of the helpers."""
    out = [".SH OPTIONS"]
    for flags, text in mount_helper.SWITCHES:
        shown = [f"\\fB{roff(flag)}\\fR" + (f" \\fI{value}\\fR" if value else "")
                 for flag, _, value in (f.partition(" ") for f in flags)]
        out += [".TP", ", ".join(shown), prose(text)]
    out += [
        ".PP", "The words of \\fB\\-o\\fR are those of", ".BR passthru (8),", "MOUNT OPTIONS.",
        "In", ".BR fstab (5)", "a value with commas is put in double quotes.", *ignored_words(),
        "Words that are neither are an error.",
    ]
    return "\n".join(out) + "\n"


def mount_passthru() -> str:
    """mount.passthru(8)."""
    head = HELPER_HEAD.replace("@VERSION@", VERSION).replace("@DATE@", DATE)
    codes = exit_codes(mount_helper.EXIT_CODES)
    return head + helper_options() + HELPER_MORE + codes + "They are those of\n.BR mount (8).\n" + HELPER_TAIL


PAGES: dict[str, Callable[[], str]] = {"passthru.8": passthru, "mount.passthru.8": mount_passthru}
# Completions, by the name that each shell looks for.
SHELLS: dict[str, Callable[[], str]] = {
    "passthru.bash": lambda: completion.bash(completion.model(parser_of)),
    "_passthru": lambda: completion.zsh(completion.model(parser_of)),
    "passthru.fish": lambda: completion.fish(completion.model(parser_of))}


def complaints(page: Path) -> str:
    """What man and mandoc, if they are here, have to say against a page."""
    said = ""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    for command in (["man", "--warnings", "-l", str(page)], ["mandoc", "-T", "lint", str(page)]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            said += done.stderr + (done.stdout if command[0] == "mandoc" or done.returncode else "")
    return said


def main() -> int:
    if sys.argv[1:] != ["--check"]:
        for name, write in PAGES.items():
            (HERE / name).write_text(write())
        for name, write in SHELLS.items():
            (HERE / name).write_text(write())
        return 0
    said = ""
    for name, write in PAGES.items():
        page = HERE / name
        if not page.exists() or page.read_text() != write():
            said += f"{page}: not current; run: python man/make.py\n"
        else:
            said += complaints(page)
    said += "".join(f"{HERE / name}: not current; run: python man/make.py\n" for name, write in SHELLS.items()
                    if not (HERE / name).exists() or (HERE / name).read_text() != write())
    said += "".join(f"{page}: is not in PAGES of man/make.py\n" for page in sorted(HERE.glob("*.[1-9]"))
                    if page.name not in PAGES)
    print(said, end="", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
