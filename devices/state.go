package devices

import (
	"errors"
	"fmt"
)

// ErrVersion is wrapped by the error of a Restore whose state was written by a
// version of the device that this one does not know.
var ErrVersion = errors.New("unknown state version")

// CheckVersion is the first step of every Restore: an error unless the version
// found in the state of the device is the one wanted.
func CheckVersion(device string, found, want uint32) error {
	if found != want {
		return fmt.Errorf("%s state: %w %d, this program reads version %d: save it again with the program that is to restore it",
			device, ErrVersion, found, want)
	}
	return nil
}
