package main

import (
	"os"
	"path/filepath"
	"strings"
)

// complete completes the word before the cursor when the key is a tab: the
// first word of a line as a command, any other as a file. Where several names
// fit, it completes what they have in common.
func complete(dir, line string, pos int, key rune) (string, int, bool) {
	if key != '\t' {
		return "", 0, false
	}
	start := strings.LastIndexAny(line[:pos], " \t|;&<>") + 1
	word := line[start:pos]
	var names []string
	if strings.TrimSpace(line[:start]) == "" && !strings.Contains(word, "/") {
		names = commandsWith(word)
	} else {
		names = filesWith(dir, word)
	}
	common := commonPrefix(names)
	if len(names) == 1 && !strings.HasSuffix(common, "/") {
		common += " "
	}
	if len(common) <= len(word) {
		return line, pos, true
	}
	return line[:start] + common + line[pos:], start + len(common), true
}

func commandsWith(prefix string) []string {
	seen := make(map[string]bool)
	var names []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		// A folder of the PATH need not exist.
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if name := e.Name(); strings.HasPrefix(name, prefix) && !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

func filesWith(dir, prefix string) []string {
	folder, base := filepath.Split(prefix)
	where := folder
	if !filepath.IsAbs(where) {
		where = filepath.Join(dir, folder)
	}
	entries, _ := os.ReadDir(where) // one that cannot be read completes nothing
	var names []string
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, base) && (base != "" || name[0] != '.') {
			if e.IsDir() {
				name += "/"
			}
			names = append(names, folder+name)
		}
	}
	return names
}

func commonPrefix(names []string) string {
	if len(names) == 0 {
		return ""
	}
	prefix := names[0]
	for _, n := range names[1:] {
		for !strings.HasPrefix(n, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	return prefix
}
