package live

import (
	"fmt"

	"github.com/godwit-vmm/godwit/migrate/stream"
)

// IncomingDisk is where a disk goes to that comes with its guest.
type IncomingDisk struct {
	Target stream.DiskTarget
	// Leftover says that parts of the disk may be there already: the source asks which.
	// Otherwise it is zeros.
	Leftover bool
}

// incomingDisks are the disks of a migration that comes in.
type incomingDisks []struct {
	IncomingDisk
	size uint64
	// came is set when there was a connection for it.
	came bool
}

func newIncomingDisks(offered []OfferedDisk, here []IncomingDisk) (incomingDisks, error) {
	if len(offered) != len(here) {
		return nil, fmt.Errorf("%d disks come with the guest, and there is a place for %d", len(offered), len(here))
	}
	disks := make(incomingDisks, len(here))
	for i := range disks {
		disks[i].IncomingDisk, disks[i].size = here[i], offered[i].Size
	}
	return disks, nil
}

// leftover is Answer.Leftover.
func (ds incomingDisks) leftover() []bool {
	var left []bool
	for _, d := range ds {
		left = append(left, d.Leftover)
	}
	return left
}

// next is what receives the disk with an index, once; else nil.
func (ds incomingDisks) next(index uint16) *stream.DiskReceiver {
	if int(index) >= len(ds) || ds[index].came {
		return nil
	}
	d := &ds[index]
	d.came = true
	return &stream.DiskReceiver{Target: d.Target, Size: d.size}
}
