package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// resident is the memory of a process in KiB.
type resident struct {
	rss     float64 // all that is present
	private float64 // the part that no other process shares
	guest   float64 // present guest memory, which is in neither of the others
}

// residentMemory adds up /proc/PID/smaps. isGuest tells by the name of a
// mapping whether it is guest memory.
func residentMemory(pid int, isGuest func(name string) bool) (resident, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return resident{}, err
	}
	defer f.Close()
	return parseSmaps(f, isGuest)
}

// parseSmaps reads the format of proc_pid_smaps(5): for each mapping a line
// like that of maps, then lines of the form "Rss:      12 kB".
func parseSmaps(r io.Reader, isGuest func(name string) bool) (resident, error) {
	var sum resident
	guest := false
	s := bufio.NewScanner(r)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) == 0 {
			continue
		}
		key, ok := strings.CutSuffix(fields[0], ":")
		if !ok {
			// address, permissions, offset, device, inode, name
			guest = len(fields) > 5 && isGuest(strings.Join(fields[5:], " "))
			continue
		}
		if key != "Rss" && key != "Private_Clean" && key != "Private_Dirty" {
			continue
		}
		if len(fields) != 3 || fields[2] != "kB" {
			return resident{}, fmt.Errorf("smaps: line %q: want a size in kB", s.Text())
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return resident{}, fmt.Errorf("smaps: line %q: %w", s.Text(), err)
		}
		switch {
		case guest && key == "Rss":
			sum.guest += float64(kib)
		case guest:
		case key == "Rss":
			sum.rss += float64(kib)
		default:
			sum.private += float64(kib)
		}
	}
	return sum, s.Err()
}
