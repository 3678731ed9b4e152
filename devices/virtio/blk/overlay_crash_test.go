package blk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

// crashEnv names the folder of a process that writes to a disk until it is
// killed.
const crashEnv = "BLK_TEST_CRASH"

func crashConfig(dir string) Config {
	return Config{Path: filepath.Join(dir, "base"), Overlay: filepath.Join(dir, "overlay"), Queues: modelClients}
}

// journal notes outside of the disk, in memory that outlives the process, which
// versions of each sector there may be: version 0 is the base's, each write makes
// the next.
type journal []byte

// Numbers of a sector in the journal.
const (
	issued    = iota // the last version that was sent to the disk
	completed        // the last that the disk has answered
	flushed          // the last at the time of a flush that the disk has answered
	journalNumbers
)

func openJournal(t testing.TB, dir string) journal {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = modelSectors * journalNumbers * 4
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (j journal) at(sector uint64, number int) []byte {
	return j[(sector*journalNumbers+uint64(number))*4:][:4]
}

func (j journal) get(sector uint64, number int) uint32 {
	return binary.LittleEndian.Uint32(j.at(sector, number))
}

func (j journal) set(sector uint64, number int, version uint32) {
	binary.LittleEndian.PutUint32(j.at(sector, number), version)
}

// isZero tells whether a version is made by writing zeros.
func isZero(version uint32) bool { return version%5 == 4 }

// fillVersion is what a sector holds in a version from 1.
func fillVersion(p []byte, sector uint64, version uint32) {
	if isZero(version) {
		clear(p)
		return
	}
	copy(p, pattern(SectorSize, sector<<32|uint64(version)))
	binary.LittleEndian.PutUint32(p, version)
	p[4] = 1 // so that no version is all zeros
}

// TestCrashChild is the process that is killed by TestOverlayKilled.
func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashEnv)
	if dir == "" {
		return
	}
	j := openJournal(t, dir)
	device, err := New(crashConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
	var clients []*client
	for i := range modelClients {
		clients = append(clients, newClient(d, i))
	}
	fmt.Println("ready")
	var forever sync.WaitGroup
	for i, c := range clients {
		forever.Go(func() {
			for {
				c.crashStep(i, j)
			}
		})
	}
	forever.Wait()
}

// crashStep makes one request and notes it before and after.
func (c *client) crashStep(client int, j journal) {
	if rand.IntN(12) == 0 {
		c.crashFlush(client, j)
		return
	}
	sector, n := ownRange(rand.New(rand.NewPCG(rand.Uint64(), 0)), client)
	version := uint32(0)
	for s := sector; s < sector+n; s++ {
		version = max(version, j.get(s, issued)+1)
	}
	data := make([]byte, n*SectorSize)
	for i := range n {
		j.set(sector+i, issued, version)
		fillVersion(data[i*SectorSize:(i+1)*SectorSize], sector+i, version)
	}
	if isZero(version) {
		c.do(typeWriteZeroes, 0, segment(sector, uint32(n), rand.Uint32N(2)))
	} else {
		c.do(typeOut, sector, data)
	}
	for s := sector; s < sector+n; s++ {
		j.set(s, completed, version)
	}
}

func (c *client) crashFlush(client int, j journal) {
	then := bytes.Clone(j)
	c.do(typeFlush, 0, nil)
	for s := range uint64(modelSectors) {
		if owner(s) == client {
			j.set(s, flushed, journal(then).get(s, completed))
		}
	}
}

// owner is the client that a sector belongs to.
func owner(sector uint64) int {
	if sector < modelShared {
		return int(sector / modelBlock % modelClients)
	}
	return int((sector - modelShared) / modelPiece)
}

// TestOverlayKilled kills a process that uses an overlay, again and again. What
// it had written is there, and what it was about to write is in each sector the
// old or the new. Where the host goes down as well, the same holds for what it
// had flushed.
func TestOverlayKilled(t *testing.T) {
	dir := t.TempDir()
	base, contents := makeBase(t, modelSectors*SectorSize)
	if err := os.Link(base, filepath.Join(dir, "base")); err != nil {
		t.Fatal(err)
	}
	j := openJournal(t, dir)
	defer unix.Munmap(j)
	written := 0
	for i := range 60 {
		if i%4 == 0 { // a new overlay
			clear(j)
			if err := os.RemoveAll(crashConfig(dir).Overlay); err != nil {
				t.Fatal(err)
			}
		}
		runAndKill(t, dir)
		hostToo := i%4 >= 2
		if hostToo {
			anotherBoot(t, crashConfig(dir).Overlay)
		}
		written += checkCrash(t, crashConfig(dir), j, contents, hostToo)
	}
	if written == 0 {
		t.Error("nothing was ever written")
	}
	t.Logf("%d sectors were found written", written)
}

// runAndKill runs a process for a moment.
func runAndKill(t *testing.T, dir string) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	c.Env = append(os.Environ(), crashEnv+"="+dir)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	// Any moment will do, more often an early one.
	time.Sleep(time.Millisecond << rand.IntN(6) * time.Duration(rand.IntN(1000)) / 1000)
	c.Process.Kill()
	c.Wait()
	if line != "ready\n" {
		t.Fatalf("the process did not get ready: %q, %v, %s", line, err, stderr.String())
	}
}

// checkCrash looks at all sectors, notes in the journal what it finds there, and
// returns how many are not the base's.
func checkCrash(t *testing.T, c Config, j journal, contents []byte, hostToo bool) (written int) {
	t.Helper()
	device, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
	got, _ := d.read(0, len(contents))
	d.Stop()
	kill(t, device)
	atLeast := completed
	if hostToo {
		atLeast = flushed
	}
	for s := range uint64(modelSectors) {
		now := got[s*SectorSize : (s+1)*SectorSize]
		version, ok := findVersion(now, s, contents[s*SectorSize:(s+1)*SectorSize], j.get(s, atLeast), j.get(s, issued))
		if !ok {
			t.Fatalf("sector %d: want a version from %d to %d (%d completed, %d flushed), not %x", s,
				j.get(s, atLeast), j.get(s, issued), j.get(s, completed), j.get(s, flushed), now[:8])
		}
		j.set(s, issued, version)
		j.set(s, completed, version)
		if hostToo {
			j.set(s, flushed, version)
		}
		if version > 0 {
			written++
		}
	}
	return written
}

// findVersion says which of some versions a sector holds.
func findVersion(p []byte, sector uint64, base []byte, from, to uint32) (version uint32, ok bool) {
	if from == 0 && bytes.Equal(p, base) {
		return 0, true
	}
	if bytes.Equal(p, zeros[:SectorSize]) {
		for v := to; v >= max(from, 1); v-- {
			if isZero(v) {
				return v, true
			}
		}
		return 0, false
	}
	version = binary.LittleEndian.Uint32(p)
	want := make([]byte, SectorSize)
	fillVersion(want, sector, version)
	return version, version >= max(from, 1) && version <= to && bytes.Equal(p, want)
}
