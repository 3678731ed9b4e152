package blk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"golang.org/x/sys/unix"
)

// holdEnv makes the test binary a process that has a disk open, until its
// standard input ends.
const holdEnv = "BLK_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		d, err := New(Config{Path: path, ReadOnly: os.Getenv(holdEnv+"_RO") != ""})
		fmt.Println(err)
		bufio.NewReader(os.Stdin).ReadByte()
		if err == nil {
			d.Close()
		}
		return
	}
	os.Exit(m.Run())
}

// hold starts a process that has the disk open. stop ends it.
func hold(t *testing.T, path string, readOnly bool) (pid int, stop func()) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), holdEnv+"="+path)
	if readOnly {
		c.Env = append(c.Env, holdEnv+"_RO=1")
	}
	c.Stderr = os.Stderr
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		stdin.Close()
		c.Wait()
	}
	t.Cleanup(stop)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("the other process could not open the disk: %s %v", line, err)
	}
	return c.Process.Pid, stop
}

func TestTwoWriters(t *testing.T) {
	path, _ := makeImage(t, 4096)
	pid, stop := hold(t, path, false)
	for _, readOnly := range []bool{false, true} {
		_, err := New(Config{Path: path, ReadOnly: readOnly})
		if !errors.Is(err, ErrInUse) {
			t.Fatalf("readOnly=%v: second disk: %v, want ErrInUse", readOnly, err)
		}
		for _, want := range []string{path, fmt.Sprintf("process %d (%.15s)", pid, filepath.Base(os.Args[0]))} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("readOnly=%v: %q does not say %q", readOnly, err, want)
			}
		}
	}
	stop()
	d := newDevice(t, Config{Path: path})
	if _, err := New(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "another disk of this process") {
		t.Errorf("second disk of one process: %v", err)
	}
	// What failed has not taken the lock from the first.
	if _, err := New(Config{Path: path}); !errors.Is(err, ErrInUse) {
		t.Errorf("third disk: %v, want ErrInUse", err)
	}
	_ = d
}

func TestManyReaders(t *testing.T) {
	path, _ := makeImage(t, 4096)
	hold(t, path, true)
	newDevice(t, Config{Path: path, ReadOnly: true})
	newDevice(t, Config{Path: path, ReadOnly: true, Direct: true})
	if _, err := New(Config{Path: path}); !errors.Is(err, ErrInUse) {
		t.Errorf("writer beside readers: %v, want ErrInUse", err)
	}
}

// TestNoSpace fills the file system under a sparse image.
func TestNoSpace(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		dir := t.TempDir()
		if err := unix.Mount("blk-test", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("a small file system cannot be mounted: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		path := filepath.Join(dir, "disk.img")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 8<<20); err != nil {
			t.Fatal(err)
		}
		var w virtiotest.Warnings
		d := newDisk(t, Config{Path: path, Warn: w.Add, engine: e, noInline: true})
		data := pattern(256<<10, 2)
		failed := 0
		for i := range 8 {
			if s := d.send(typeOut, uint64(i)*1024, data); s == statusIOError {
				failed++
			}
		}
		if failed < 4 || failed == 8 {
			t.Errorf("%d of 8 writes of 256 KiB into 1 MiB failed", failed)
		}
		if list := w.All(); len(list) != 1 || !errors.Is(list[0], unix.ENOSPC) || !strings.Contains(list[0].Error(), path) {
			t.Errorf("warnings %v, want one about ENOSPC", list)
		}
		// The disk goes on with what there is, and more when there is room.
		d.expect(0, data)
		d.mustSend(typeDiscard, 0, segment(0, 16384, 0))
		d.mustSend(typeOut, 8192, data)
		d.expect(8192, data)
	})
}

// TestShortImage cuts the image under the disk.
func TestShortImage(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, contents := makeImage(t, 64<<10)
			var w virtiotest.Warnings
			d := newDisk(t, Config{Path: path, Warn: w.Add, engine: e, noInline: noInline})
			if err := os.Truncate(path, 32<<10); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if _, s := d.read(60, 8192); s != statusIOError {
					t.Errorf("read over the new end: status %d", s)
				}
			}
			if list := w.All(); len(list) != 1 || !errors.Is(list[0], unix.EIO) {
				t.Errorf("warnings %v, want one about EIO", list)
			}
			d.expect(0, contents[:32<<10])
		}
	})
}

// TestFailingDescriptor replaces the descriptor of the image by one that cannot
// be read.
func TestFailingDescriptor(t *testing.T) {
	for _, noInline := range []bool{false, true} {
		path, _ := makeImage(t, 8192)
		var w virtiotest.Warnings
		device := newDevice(t, Config{Path: path, Warn: w.Add, engine: enginePool, noInline: noInline})
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(fd, device.image.buffered, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		d := &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
		for range 3 {
			if _, s := d.read(0, 4096); s != statusIOError {
				t.Errorf("status %d", s)
			}
		}
		d.mustSend(typeOut, 0, make([]byte, 512))
		if list := w.All(); len(list) != 1 || !errors.Is(list[0], unix.EBADF) || !strings.Contains(list[0].Error(), "read") {
			t.Errorf("warnings %v, want one about EBADF", list)
		}
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestDiscardFreesBlocks(t *testing.T) {
	path, contents := makeImage(t, 1<<20)
	d := newDisk(t, Config{Path: path})
	before := blocks(t, path)
	d.mustSend(typeDiscard, 0, segment(0, 512, 0), segment(1024, 512, 0))
	if freed := before - blocks(t, path); freed < 1024 {
		t.Errorf("discarding 1024 sectors freed %d", freed)
	}
	d.expect(512, contents[256<<10:512<<10])
	d.expect(1536, contents[768<<10:])
}

func TestWriteZeroes(t *testing.T) {
	path, contents := makeImage(t, 256<<10)
	d := newDisk(t, Config{Path: path})
	before := blocks(t, path)
	// Not on the boundaries of pages.
	d.mustSend(typeWriteZeroes, 0, segment(3, 10, 0), segment(99, 200, 1))
	clear(contents[3*512 : 13*512])
	clear(contents[99*512 : 299*512])
	d.expect(0, contents)
	freed := before - blocks(t, path)
	if freed < 180 || freed > 200 {
		t.Errorf("200 sectors to be unmapped and 10 not to: %d freed", freed)
	}
}

// TestWriteZerosByHand tests what is done where the file system has no holes.
func TestWriteZerosByHand(t *testing.T) {
	path, contents := makeImage(t, 256<<10)
	m, err := openImage(&Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if errno := m.writeZeros(span{offset: 512, length: 200 << 10}); errno != 0 {
		t.Fatal(errno)
	}
	clear(contents[512 : 512+200<<10])
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, contents) {
		t.Errorf("wrong contents, %v", err)
	}
}

func TestResize(t *testing.T) {
	path, contents := makeImage(t, 8192)
	d := newDisk(t, Config{Path: path})
	resize := func(size int64) error {
		t.Helper()
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return d.device.Resize()
	}
	if err := resize(16384); err != nil {
		t.Fatal(err)
	}
	d.AwaitConfigChange()
	if got := d.Config(configCapacity, 8); got[0] != 32 {
		t.Errorf("capacity %v after growing, want 32 sectors", got)
	}
	d.expect(0, append(bytes.Clone(contents), make([]byte, 8192)...))
	if err := resize(4096); err != nil {
		t.Fatal(err)
	}
	d.AwaitConfigChange()
	if _, s := d.read(8, 512); s != statusIOError {
		t.Errorf("read behind the new end: status %d", s)
	}
	for _, size := range []int64{4097, 0} {
		if err := resize(size); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("resize to %d bytes: %v", size, err)
		}
	}
	if d.device.Capacity() != 4096 {
		t.Errorf("capacity %d after resizes that failed, want 4096", d.device.Capacity())
	}
	if err := resize(4096); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.ConfigChanged:
		t.Error("configuration changed with the size as it was")
	default:
	}
	d.Stop()
	if err := resize(8192); err != nil {
		t.Fatal(err)
	}
	d.Resume()
	d.AwaitConfigChange()
	d.expect(8, make([]byte, 4096))
}

// loopDevice makes a block device of a file.
func loopDevice(t *testing.T, file string) (path string) {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	path = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", path).Run(); err != nil {
			t.Error(err)
		}
	})
	return path
}

// TestBlockDevice uses a loop device.
func TestBlockDevice(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, direct := range []bool{false, true} {
			file, contents := makeImage(t, 1<<20)
			path := loopDevice(t, file)
			d := newDisk(t, Config{Path: path, Direct: direct, engine: e})
			d.expect(0, contents)
			data := pattern(12<<10, 4)
			d.mustSend(typeOut, 9, data)
			copy(contents[9*512:], data)
			d.mustSend(typeWriteZeroes, 0, segment(100, 100, 0), segment(300, 33, 1))
			clear(contents[100*512 : 200*512])
			clear(contents[300*512 : 333*512])
			d.mustSend(typeFlush, 0)
			d.expect(0, contents)
			before := blocks(t, file)
			d.mustSend(typeDiscard, 0, segment(1024, 1024, 0))
			if freed := before - blocks(t, file); freed < 1000 {
				t.Errorf("discarding 1024 sectors freed %d", freed)
			}
			d.expect(0, contents[:512<<10])
			if _, err := New(Config{Path: path}); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("second disk on the device: %v", err)
			}
			if err := os.Truncate(file, 2<<20); err != nil {
				t.Fatal(err)
			}
			if err := exec.Command("losetup", "--set-capacity", path).Run(); err != nil {
				t.Fatal(err)
			}
			if err := d.device.Resize(); err != nil || d.device.Capacity() != 2<<20 {
				t.Errorf("resize: %v, capacity %d", err, d.device.Capacity())
			}
		}
	})
}
