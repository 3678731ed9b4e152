package handover

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Prune removes what no longer says anything of a guest: records that are done and that a
// newer epoch has overtaken, refusals, and what writes that were cut off have left. Records
// in use stay.
func (j *Journal) Prune(vm string) error {
	found, err := j.of(vm)
	if err != nil {
		return err
	}
	newest := newestEpochs(found)
	var errs []error
	for _, f := range found {
		overtaken := f.Record.done(newest) && f.Record.Epoch < newest[vm]
		if f.Err == nil && (overtaken || f.Record.needless()) {
			errs = append(errs, j.prune(f.Record))
		}
	}
	return errors.Join(append(errs, j.removeTorn(vm))...)
}

// PruneRefusals removes refusals that no process is about to say, of all guests, but for so
// many that are the newest, for people: whoever can connect can have them written, and a
// source that never acknowledges them has them stay.
func (j *Journal) PruneRefusals(keep int) error {
	found, err := j.matching(func(k Key) bool { return k.Role == RoleDestination })
	if err != nil {
		return err
	}
	var refusals []Record
	for _, f := range found {
		if f.Err == nil && f.Record.needless() {
			refusals = append(refusals, f.Record)
		}
	}
	slices.SortFunc(refusals, func(a, b Record) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(a.VM, b.VM)) })
	var errs []error
	for _, r := range refusals[min(max(keep, 0), len(refusals)):] {
		errs = append(errs, j.prune(r))
	}
	return errors.Join(errs...)
}

// needless says of an entry that without it the same is said: a source that asks about a
// migration that nothing is known of is refused (rule 4). While a process takes part in the
// migration it is needed, for OWNER may have been where it is.
func (e Entry) needless() bool { return e.Role == RoleDestination && e.State == StateRefused }

// prune removes a record that nobody uses, if it is still as it was read.
func (j *Journal) prune(r Record) error {
	s, err := j.Acquire(r.Key())
	if errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := s.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && now != r:
		err = nil
	case err == nil:
		err = s.Remove()
	}
	return errors.Join(err, s.Close())
}

// removeTorn removes the temporary files of records that nobody is writing.
func (j *Journal) removeTorn(vm string) error {
	var errs []error
	err := j.scan(func(file string) error {
		hidden, dot := strings.CutPrefix(file, ".")
		base, _, found := strings.Cut(hidden, suffix+".")
		k, ok := parseKey(base + suffix)
		if !dot || !found || !ok || k.VM != vm {
			return nil
		}
		s, err := j.Acquire(k)
		if errors.Is(err, ErrBusy) {
			return nil
		}
		if err == nil {
			err = errors.Join(os.Remove(filepath.Join(j.dir, file)), s.Close())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return nil
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("migration journal: %w", err))
	}
	return errors.Join(errs...)
}
