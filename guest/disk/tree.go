package disk

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// inodeSize is what each file takes beside its content.
const inodeSize = 256

// content is how much a tree holds.
type content struct {
	files uint64
	bytes uint64 // in whole blocks
}

// imageSize is the default size of an image with this content: room for block
// maps and folders, the slack, and up to a multiple of 1 MiB.
func (c content) imageSize() uint64 {
	size := c.bytes + c.bytes/8 + c.files*inodeSize*2 + slack
	return (size + 1<<20 - 1) &^ (1<<20 - 1)
}

// inodes is how many files a file system of the given size can have: one for
// each 16 KiB, which is the usual number, and at least twice what there is.
func (c content) inodes(size uint64) uint64 { return max(size/(16<<10), 2*c.files+1024) }

// measure counts what is in a tree.
func measure(tree string) (content, error) {
	var c content
	type inode struct{ dev, ino uint64 }
	linked := make(map[inode]bool)
	err := filepath.WalkDir(tree, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 && !info.IsDir() {
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		c.files++
		size := uint64(blockSize)
		if info.Mode().IsRegular() {
			// Less than its length if it is sparse.
			size = min(uint64(info.Size()), uint64(st.Blocks)*512)
		}
		c.bytes += (size + blockSize - 1) &^ (blockSize - 1)
		return nil
	})
	return c, err
}

// ownersOf are the changes that make root the owner of what belongs to the user
// who runs this, and of what belongs to the user's group.
func ownersOf(tree string) ([]change, error) {
	uid, gid := os.Geteuid(), os.Getegid()
	var changes []change
	err := filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		c := change{path: name}
		if name == "." {
			// mkfs.ext4 does not copy the attributes of the root.
			c.set("mode", st.Mode)
			c.set("uid", ownerOf(st.Uid, uid))
			c.set("gid", ownerOf(st.Gid, gid))
			c.set("mtime", st.Mtim.Sec)
		} else {
			if owner := ownerOf(st.Uid, uid); owner != st.Uid {
				c.set("uid", owner)
			}
			if group := ownerOf(st.Gid, gid); group != st.Gid {
				c.set("gid", group)
			}
		}
		if !c.isEmpty() {
			changes = append(changes, c)
		}
		return nil
	})
	return changes, err
}

func ownerOf(id uint32, own int) uint32 {
	if int64(id) == int64(own) {
		return 0
	}
	return id
}

// makeRemovable gives the folders of an unpacked tree permissions with which
// they can be removed.
func makeRemovable(tree string) {
	// An error shows when the tree is removed.
	_ = filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.IsDir() {
			_ = unix.Chmod(path, 0o700)
		}
		return nil
	})
}
