package vmm

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// Disks that no storage shares move with their guest: all that the guest can write. Those
// that it cannot write have to be at the destination, as they are without this.
//
// A disk with an overlay becomes one image: an overlay belongs to its base, as it is on
// the host where it was made.

// The logs of writes that blk makes are what live takes.
var _ [live.DiskGranule]struct{} = [blk.LogGranule]struct{}{}

// movingDisks are the disks that move with the guest, and the numbers of their drives.
func (v *VM) movingDisks(m *machine.Machine) (disks []live.Disk, drives []int) {
	for i, d := range v.Config().Drives {
		if !d.ReadOnly {
			disks, drives = append(disks, m.Disks()[i]), append(drives, i)
		}
	}
	return disks, drives
}

// checkMoving checks what an offer says of the drives that come with the guest.
func checkMoving(moving []int, described, drives int) error {
	if len(moving) != described {
		return fmt.Errorf("the offer names %d disks that come with the guest, and describes %d", len(moving), described)
	}
	for i, k := range moving {
		if k < 0 || k >= drives || i > 0 && k <= moving[i-1] {
			return fmt.Errorf("the offer has disks %v come with the guest: want numbers of its %d, rising", moving, drives)
		}
	}
	return nil
}

// comingDisk is a disk that comes with its guest.
type comingDisk struct {
	file *live.DiskFile
	// drive is its index in the configuration.
	drive int
}

// comingDisks are those of a guest that comes, in the order of the offer.
type comingDisks []comingDisk

// placeDisk has a disk that comes get a file here.
func (i *incoming) placeDisk(k int, d *Drive, id string, o live.OfferedDisk) error {
	path := i.r.Disks[id]
	switch {
	case path != "":
	case i.r.DiskFolder != "":
		// Not with the disk's ID, which the other host has chosen.
		path = filepath.Join(i.r.DiskFolder, fmt.Sprintf("%s-%d.img", filepath.Base(i.vm.Name()), k))
	case i.r.Trusted && d.Overlay == "":
		path = d.Path
	case i.r.Trusted:
		return fmt.Errorf("disk %[1]s comes with the guest, and becomes one image of its overlay and what is below: say where with --disk %[1]s=PATH", id)
	default:
		return fmt.Errorf("disk %[1]s comes with the guest: say where it is to be with --disk %[1]s=PATH", id)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	d.Path, d.Overlay = path, ""
	file, err := live.CreateDiskFile(path, o.Size, o.Data)
	if err != nil {
		return fmt.Errorf("disk %s: %w", id, err)
	}
	i.disks = append(i.disks, comingDisk{file, k})
	if file.Leftover() {
		i.note(fmt.Sprintf("disk %s: %s is there, from a migration that failed: only what differs from it is sent", id, file.Interim()))
	}
	return nil
}

// note tells what becomes of disks.
func (i *incoming) note(text string) {
	if i.r.Note != nil {
		i.r.Note(text)
	}
}

// Disks is that of live.Incoming.
func (i *incoming) Disks() []live.IncomingDisk {
	var disks []live.IncomingDisk
	for _, d := range i.disks {
		disks = append(disks, live.IncomingDisk{Target: d.file, Leftover: d.file.Leftover()})
	}
	return disks
}

// interim has a machine find the files where they are until commit.
func (ds comingDisks) interim(c *machine.Config) {
	for _, d := range ds {
		c.Disks[d.drive].Interim = d.file.Interim()
	}
}

// commit gives the files, which are complete, their names.
func (ds comingDisks) commit() error {
	for _, d := range ds {
		if err := d.file.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// abandon sees to the files of a guest that does not come, unless they have their names:
// then the journal may say that it did. With keep they stay for the next attempt, which
// note is told.
func (ds comingDisks) abandon(keep bool, note func(string)) error {
	var errs []error
	for _, d := range ds {
		switch {
		case d.file.Committed():
		case keep:
			errs = append(errs, d.file.Close())
			note("what has come of a disk stays in " + d.file.Interim() + ": the next attempt goes on with it")
		default:
			errs = append(errs, d.file.Remove())
		}
	}
	return errors.Join(errs...)
}

// close closes the files of a guest that has come.
func (ds comingDisks) close() {
	for _, d := range ds {
		// They are durable, and the machine's by now.
		_ = d.file.Close()
	}
}

// remove removes the files of a guest that was refused for good, or with keep only takes
// their names away.
func (ds comingDisks) remove(keep bool) error {
	var errs []error
	for _, d := range ds {
		switch {
		case !d.file.Committed():
		case keep:
			errs = append(errs, d.file.Withdraw())
		default:
			errs = append(errs, d.file.Remove())
		}
	}
	return errors.Join(errs...)
}
