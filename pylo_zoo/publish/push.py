"""Publishing: one commit, on top of what was looked at, and read back; or nothing, with a message that says why.

Whatever happens on the way, running it again finishes the job: a repository that was made but stayed empty is filled, a
commit whose answer was lost is found, a tag that is missing is set, and what is there already is not sent twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from pylo_zoo import artifact
from pylo_zoo.errors import ZooError
from pylo_zoo.fetch import Access, Conflict, FetchError, NotFound, Unavailable
from pylo_zoo.hub.api import Hub, Refs, Snapshot
from pylo_zoo.hub.names import COMMIT, MAIN, Repository, is_revision
from pylo_zoo.publish import registry_file, secrets
from pylo_zoo.publish.plan import DERIVED, PUBLISHED, PublishPlan, prepare, without_time
from pylo_zoo.publish.records import Options, Published, Step

MARK = "pylo-zoo content: sha256:"
"""In a commit's description, before the hash of what it publishes: by this it is known when its answer was lost."""


def publish(
    directory: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    allow_unverified: bool = False,
    options: Options | None = None,
    dry_run: bool = False,
    access: Access | None = None,
) -> Published:
    """Publish the artifact at ``directory`` as ``repo_id``, in one commit, and read it back.

    Args:
        directory: of an artifact, whose parity passed.
        repo_id: ``ORG/NAME``.
        license: of the weights, where nobody has said.
        allow_unverified: without a passing parity report, which the card then says.
        options: branch, tag, message and so on.
        dry_run: send nothing; say what would go.
        access: how to reach the Hub; ``access.token`` is the token.

    Raises:
        ZooError: the artifact is not fit to be published (:func:`pylo_zoo.publish.plan.prepare`), the repository holds
            something else, or the registry cannot be updated.
        Conflict: somebody else published meanwhile; nothing of theirs is lost, and nothing of ours was written.
        Forbidden, Unavailable, FetchError: what the Hub says; or what it gives back is not what was sent.
    """
    access, options = access or Access(), options or Options()
    repo = Repository.parse(repo_id)
    if repo.revision is not None:
        raise ZooError(f"{repo_id} names a revision.", "Give ORG/NAME, and a branch with --revision.")
    token = _token(access)
    _check_options(options, token)
    plan = prepare(directory, repo, license=license, allow_unverified=allow_unverified, token=token)
    if options.registry is not None:
        registry_file.check(options.registry, plan)
    return _Push(plan, options, access).dry() if dry_run else send(plan, options, access)


def send(plan: PublishPlan, options: Options, access: Access) -> Published:
    """Send what was prepared; raises as :func:`publish`."""
    return _Push(plan, options, access).run()


def _check_options(options: Options, token: str | None) -> None:
    for word, name in (("--revision", options.branch), ("--tag", options.tag)):
        if name is not None and (COMMIT.fullmatch(name) or name.startswith("refs/")):
            raise ZooError(f"{word} {name} is a commit or a reference.", f"Give a name of your own with {word}.")
        if name is not None and not is_revision(name):
            raise ZooError(f"{word} {name[:100]!r} is no name.", "Use letters, digits, and . _ - + / between them.")
    if options.branch is not None and options.branch == options.tag:
        raise ZooError(f"A branch and a tag cannot both be called {options.tag}.", "Give one of them another name.")
    if found := list(secrets.find_secrets({"--commit-message": (options.message or "").encode()}, token)):
        raise ZooError(f"{'; '.join(found)}.", "Nothing was sent. Revoke it if anybody has seen it.")
    if options.create_pr and (options.branch not in (None, MAIN) or options.tag is not None):
        raise ZooError(
            "A pull request goes to the main branch, and has no tag.", "Leave --revision and --tag out, or --create-pr."
        )
    if options.create_pr and options.registry is not None:
        raise ZooError("What is only proposed is not pinned.", "Leave --update-registry out until it is merged.")


def _token(access: Access) -> str | None:
    from huggingface_hub import get_token

    return access.token or get_token()


class _Push:
    """One publication under way."""

    def __init__(self, plan: PublishPlan, options: Options, access: Access) -> None:
        self.plan, self.options, self.access = plan, options, access
        self.hub = Hub(access)
        self.target = replace(plan.repo, revision=None if options.branch == MAIN else options.branch)
        self.created = False
        self.sent = False

    # --- looking ---------------------------------------------------------------------------------------------

    def dry(self) -> Published:
        """What would happen, as far as it can be known without sending anything."""
        try:
            there = self._look()
            changes = self._permitted(there)
        except Unavailable as error:
            self.access.say(f"{error.message} So it is not known what is there already.")
            return Published(self.plan, dict.fromkeys(self.plan.files, "added"), self.hub.url(self.target))
        return Published(
            self.plan,
            changes,
            self.hub.url(self.target),
            exists=there is not None,
            private=self.options.private if there is None else there.private,
        )

    def _look(self) -> Snapshot | None:
        """What the branch holds, or the main one where it is missing; None where there is no repository."""
        try:
            there = self.hub.snapshot(self.plan.repo)
        except NotFound:
            return None
        branch = self.target.revision
        if branch is None or branch not in self.hub.refs(self.plan.repo).branches:
            return there
        return self.hub.snapshot(self.target)

    def _changes(self, there: Snapshot | None) -> dict[str, Step]:
        files = there.files if there else {}
        changes: dict[str, Step] = {}
        for name in PUBLISHED:
            if name in self.plan.files:
                same = self.plan.same(name, files.get(name))
                changes[name] = "same" if same else "changed" if name in files else "added"
            elif name in files:
                changes[name] = "deleted"
        if there and self._only_the_time(changes, there):
            return dict.fromkeys(changes, "same")
        return changes

    def _only_the_time(self, changes: Mapping[str, Step], there: Snapshot) -> bool:
        """Whether nothing differs but when parity was checked, and pictures of that."""
        odd = {name for name, what in changes.items() if what != "same"}
        if odd - {artifact.PARITY, *DERIVED} or any(changes[name] != "changed" for name in odd):
            return False
        if artifact.PARITY not in odd:
            return True
        theirs = self.hub.read(there.repo.at(there.commit), artifact.PARITY)
        return without_time(theirs) == without_time(self.plan.files[artifact.PARITY])

    def _permitted(self, there: Snapshot | None) -> dict[str, Step]:
        """What becomes of each file; refused where that, or the tag, would replace what is not ours to replace."""
        changes = self._changes(there)
        if there is None:
            return changes
        if self.options.private and not there.private:
            raise ZooError(
                f"{self.plan.repo.uri} is public, and --private makes new repositories alone private.",
                "Make it private on its page, or leave --private out.",
            )
        is_same = set(changes.values()) <= {"same"}
        holds = sorted(name for name in there.files if name not in (".gitattributes", artifact.CARD))
        if holds and not (is_same or self.options.exist_ok or self.options.create_pr):
            raise ZooError(
                f"{there.repo.uri} exists and holds something else ({', '.join(holds[:4])}).",
                "--exist-ok publishes a new version there, --create-pr proposes one.",
            )
        tag, branch = self.options.tag, self.options.branch
        refs = self.hub.refs(self.plan.repo) if tag or branch else Refs({}, {}, {})
        if branch in refs.tags or tag in refs.branches:
            raise ZooError(
                f"{self.plan.repo.uri} has a {'tag' if branch in refs.tags else 'branch'} of that name.",
                "A branch and a tag of one name hide each other: give another name.",
            )
        tagged = refs.tags.get(tag) if tag else None
        if tagged is not None and not self._is_at(tagged):
            raise ZooError(
                f"{self.plan.repo.uri} has a tag {tag} already, on {tagged[:12]}.", "Tags are not moved: give another."
            )
        return changes

    def _is_at(self, commit: str) -> bool:
        """Whether ``commit`` holds just this content; others may have committed more since a run that was cut off."""
        return set(self._changes(self.hub.snapshot(self.plan.repo.at(commit))).values()) <= {"same"}

    # --- sending ---------------------------------------------------------------------------------------------

    def run(self) -> Published:
        """Publish."""
        self.hub.whoami(self.plan.repo)
        there = self._look()
        changes = self._permitted(there)
        ready = self._ready(there)
        if ready is not there:
            changes = self._permitted(ready)  # again: somebody else may have made it meanwhile
        there, commit, request = ready, ready.commit, None
        if not set(changes.values()) <= {"same"}:
            commit, request = self._commit(there, changes)
        hashes = self._read_back(commit, {name for name, what in changes.items() if what != "same"})
        if self.options.tag:
            self._tag(self.options.tag, commit)
        if self.options.registry is not None:
            self._pin(self.options.registry, commit, hashes)
        return Published(
            self.plan,
            changes,
            request or self.hub.url(self.plan.repo.at(commit)),
            commit,
            self.created,
            request,
            not self.created,
            there.private,
            self.sent,
        )

    def _ready(self, there: Snapshot | None) -> Snapshot:
        """The branch to commit to, made where it is missing."""
        if there is None:
            try:
                self.hub.create(self.plan.repo, private=self.options.private)
                self.created = True
            except Conflict:
                self.access.say(f"{self.plan.repo.uri} was there when it was to be made.")
            there = self.hub.snapshot(self.plan.repo)
        if there.repo != self.target:
            self.hub.branch(self.plan.repo, self.target.revision or MAIN)
            there = self.hub.snapshot(self.target)
        return there

    def _commit(self, there: Snapshot, changes: Mapping[str, Step]) -> tuple[str, str | None]:
        """Commit on top of ``there``; the commit, and the pull request's address.

        A call whose answer is lost may have been heard: what there is now says whether it was.
        """
        add = {name: self.plan.files[name] for name, what in changes.items() if what in ("added", "changed")}
        delete = [name for name, what in changes.items() if what == "deleted"]
        title = self.options.message or f"Publish {self.plan.artifact.name} with pylo-zoo"
        policy, attempt = self.access.policy, 1
        while True:
            if attempt > 1 or self.options.create_pr:  # a proposal may be open from a run that was killed
                done = self._find(there)
                if done is not None:
                    return done
            try:
                done = self.hub.commit(
                    self.target,
                    add,
                    delete,
                    title=title,
                    message=f"{MARK}{self.plan.digest}",
                    parent=there.commit,
                    create_pr=self.options.create_pr,
                )
                self.sent = True
                return done
            except (Conflict, Unavailable) as error:
                fault = error
            # Out of the handler: what goes wrong from here on has nothing to do with it.
            if isinstance(fault, Conflict):
                done = self._find(there)
                if done is not None:
                    return done
                raise self._beaten(there, fault)
            attempt += 1
            wait = fault.after or 0.0
            if attempt > policy.attempts or wait > policy.longest:
                return self._found_or(there, fault)
            policy.sleep(max(wait, min(policy.backoff * 2 ** (attempt - 2), policy.longest)))

    def _found_or(self, there: Snapshot, error: Unavailable) -> tuple[str, str | None]:
        """As :meth:`_find`; raises ``error`` where it was not heard, or nobody says."""
        try:
            done = self._find(there)
        except FetchError:
            done = None
        if done is None:
            raise error from None
        return done

    def _find(self, there: Snapshot) -> tuple[str, str | None] | None:
        """The commit of just this content on top of ``there``, where there is one already."""
        mark = f"{MARK}{self.plan.digest}"
        heads: dict[str, str | None] = {self.target.revision or MAIN: None}
        if self.options.create_pr:
            discussions = f"{self.hub.url(self.plan.repo)}/discussions"
            heads = {name: f"{discussions}/{name.rpartition('/')[2]}" for name in self._pulls()}
        for head, request in heads.items():
            history = self.hub.history(replace(self.plan.repo, revision=head))
            above = list(takewhile(lambda commit: commit.id != there.commit, history))
            if len(above) == len(history):
                continue  # it stands on something older, or the branch was created again
            for commit in above:
                if mark in commit.message or mark in commit.title:
                    return commit.id, request
        return None

    def _pulls(self) -> list[str]:
        return sorted(self.hub.refs(self.plan.repo).pulls)

    def _beaten(self, there: Snapshot, error: Conflict) -> Conflict:
        """Who was first."""
        try:
            last = self.hub.history(self.target)[0]
        except (FetchError, IndexError):
            return error
        if last.id == there.commit:
            return error
        return Conflict(
            f"{self.target.uri} was published to by somebody else meanwhile ({last.id[:12]}, {last.title!r}); nothing "
            "was written over it.",
            "Look at what is there now; running this again publishes on top of it.",
        )

    def _read_back(self, commit: str, sent: set[str]) -> dict[str, str]:
        """Download what was published and compare it byte by byte; sha256 by name, pictures as they are there."""
        repo = self.plan.repo.at(commit)
        there = self.hub.snapshot(repo)
        hashes = {}
        for name, sha256 in self.plan.hashes.items():
            if name not in there.files:
                raise self._lost(repo, name, "is not there")
            found = hashlib.sha256(self.hub.read(repo, name)).hexdigest()
            if found != sha256 and (name in sent or name not in (artifact.PARITY, *DERIVED)):
                raise self._lost(repo, name, f"has sha256 {found} there, not {sha256}")
            hashes[name] = found
        return hashes

    def _lost(self, repo: Repository, name: str, what: str) -> FetchError:
        return FetchError(
            f"{repo.uri} was published, but {name} {what}.",
            "Run this again; if it stays so, nobody should use it: report it to the Hub.",
        )

    def _tag(self, tag: str, commit: str) -> None:
        if self.hub.refs(self.plan.repo).tags.get(tag) == commit:
            return
        with suppress(Conflict):
            self.hub.tag(self.plan.repo, tag, commit, f"{self.plan.artifact.name}, by pylo-zoo")
            return
        there = self.hub.refs(self.plan.repo).tags.get(tag)
        if there != commit and not (there and self._is_at(there)):
            raise ZooError(
                f"Published as {commit}, but its tag {tag} stands on {str(there)[:12]}.",
                "Tags are not moved: run this again with another --tag.",
            )

    def _pin(self, path: Path, commit: str, hashes: Mapping[str, str]) -> None:
        try:
            registry_file.pin(path, self.plan, commit, hashes)
        except ZooError as error:
            raise ZooError(f"Published as {commit}, but not pinned: {error.message}", error.hint) from None
