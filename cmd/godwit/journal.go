package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
)

// journalDir is where this host's journal of migrations is.
func journalDir() (string, error) {
	state, err := rundir.StateDir()
	return filepath.Join(state, "migrations"), err
}

// openJournal opens the journal, which is made if there is none.
func openJournal() (*handover.Journal, error) {
	dir, err := journalDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	return handover.OpenJournal(dir)
}

// existingJournal opens the journal if there is one, else it returns nil: most hosts have
// none, and who only looks leaves none behind.
func existingJournal() (*handover.Journal, error) {
	dir, err := journalDir()
	if err != nil {
		return nil, nil // there is no home, and no journal in it
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return handover.OpenJournal(dir)
}

// mayStart says whether a guest of this name may be started here: it may be another
// host's.
func mayStart(name string) error {
	j, err := existingJournal()
	if j == nil || err != nil {
		return err
	}
	return j.MayStart(name)
}
