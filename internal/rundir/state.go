package rundir

import (
	"fmt"
	"os"
	"path/filepath"
)

// StateDir is the folder of this user for what outlives processes and restarts of the
// host: $GODWIT_STATE_DIR, else /var/lib/godwit for root and godwit in $XDG_STATE_HOME or
// ~/.local/state for others. It may not be there.
func StateDir() (string, error) {
	if dir := os.Getenv("GODWIT_STATE_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Getuid() == 0 {
		return "/var/lib/godwit", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "godwit"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("folder for the state of godwit: %w: set GODWIT_STATE_DIR", err)
	}
	return filepath.Join(home, ".local", "state", "godwit"), nil
}
