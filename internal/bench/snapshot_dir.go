package bench

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// runtimeDir is the environment variable with the folder where godwit keeps what
// belongs to running guests.
const runtimeDir = "GODWIT_RUNTIME_DIR"

// useFastDir has the programs that this one starts keep what belongs to running
// guests in a new folder in memory: there the usual one, below /run, is on any machine
// that boots with systemd. remove puts all back as it was.
func useFastDir() (remove func(), err error) {
	dir, err := fastDir()
	if err != nil {
		return nil, err
	}
	before, was := os.LookupEnv(runtimeDir)
	if err := os.Setenv(runtimeDir, dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return func() {
		// A name that was there can be set, and any can be removed.
		if was {
			_ = os.Setenv(runtimeDir, before)
		} else {
			_ = os.Unsetenv(runtimeDir)
		}
		_ = os.RemoveAll(dir)
	}, nil
}

// installed is install with useFastDir.
func installed(e *Env) (godwit string, remove func(), err error) {
	if godwit, err = install(e); err == nil {
		remove, err = useFastDir()
	}
	return godwit, remove, err
}

// fastDir makes a folder on a file system in memory, on the disk where there is none.
func fastDir() (string, error) {
	for _, dir := range []string{"/run", "/dev/shm"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC {
			if made, err := os.MkdirTemp(dir, "godwit-bench-"); err == nil {
				return made, nil
			}
		}
	}
	return os.MkdirTemp("", "godwit-bench-")
}
